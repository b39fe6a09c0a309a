"""Load functions and classes of the user's own, named as ``package.module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from verl_mtgrpo.errors import ConfigError, MTGRPOError


def load_own(name: str, key: str, kind: str) -> Any:
    """Return what ``name`` stands for.

    Args:
        name: ``package.module:name`` or ``path/to/file.py:name``.
        key: The setting that it comes from, for messages.
        kind: ``function`` or ``class``, for messages.

    Raises:
        ConfigError: There is no such module or file, it cannot be loaded, or it has nothing callable of that name.
    """
    where, _, attribute = name.rpartition(":")
    found = getattr(_load_module(where, name, key, kind), attribute, None)
    if not callable(found):
        raise ConfigError(f"{key} is {name!r}, but {where} has no {kind} {attribute!r}", fix="correct the name")
    return found


def _load_module(where: str, name: str, key: str, kind: str) -> ModuleType:
    if where.endswith(".py") and not Path(where).is_file():
        raise ConfigError(
            f"{key} is {name!r}, but there is no file {where}",
            fix=f"name an existing file as FILE.py:{kind.upper()}, preferably by its absolute path",
        )
    try:
        return load_file(where) if where.endswith(".py") else importlib.import_module(where)
    except MTGRPOError:  # a package of this one that lacks another
        raise
    except (Exception, SystemExit) as error:  # a file of the user's: running it may raise anything
        missing = isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}.")
        raise ConfigError(
            f"{key} is {name!r}, but {where} cannot be loaded: {described(error, where)}",
            fix="correct the name, or install the package where the run can import it"
            if missing
            else f"correct this error in {where}, or in what it imports",
        ) from error


def load_file(where: str | Path) -> ModuleType:
    """Run a Python file that no package contains, and return it as a module."""
    spec = importlib.util.spec_from_file_location(f"mtgrpo_own_{Path(where).stem}", where)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {where}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def described(error: BaseException, file: str) -> str:
    """Describe an error of the user's code in one line: its kind, its message, and the last line of ``file``."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # its message already has file and line
        return said
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).name == Path(file).name]
    return f"{said} ({own[-1].filename}, line {own[-1].lineno})" if own else said


def misfit(function: Callable[..., Any], *given: Any, **named: Any) -> str:
    """Return how a function's arguments do not fit what it is given, as "takes (…), which does not fit: …".

    Empty if they fit, or if the function does not say what it takes, as some builtins.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        return f"takes {signature}, which does not fit: {error}"
    return ""
