"""verl's configs as Hydra composes them: each of them once in a process, however many tests want it.

What composing takes is half the parsing of the same thirty YAML files, so tests that need a config of their own are
helped as well (:func:`parsing_once`, which conftest.py turns on).
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

SEARCHPATH = "hydra.searchpath=[pkg://verl_mtgrpo.config]"


def composed(
    *overrides: str, preset: str | None = None, primary: str = "ppo_trainer", module: str = "verl.trainer.config"
) -> DictConfig:
    """Return a config of its own for each caller, unresolved, as verl's main function gets it.

    Args:
        overrides: as on the command line.
        preset: the method to add (``+mtgrpo=…``), with the search path it is found on.
        primary: ``--config-name``.
        module: ``--config-path``, a package.
    """
    sys.audit("tests.compose")  # tests/costs.py: also where another test has paid for it
    group = (SEARCHPATH, f"+mtgrpo={preset}") if preset else ()
    return pickle.loads(_pickled(module, primary, (*group, *overrides)))


@cache
def _pickled(module: str, primary: str, overrides: tuple[str, ...]) -> bytes:
    """Compose takes a quarter of a second, a copy of the result three milliseconds."""
    with initialize_config_module(module, version_base=None):
        return pickle.dumps(compose(primary, list(overrides)))


@contextmanager
def parsing_once() -> Iterator[None]:
    """Remember what OmegaConf has parsed of a text, and give each caller a copy."""
    original, parsed = OmegaConf.load, dict[str, bytes]()

    def load(file: Any) -> Any:
        if not hasattr(file, "read"):
            return original(file)
        text = file.read()
        if text not in parsed:
            parsed[text] = pickle.dumps(original(StringIO(text)))
        return pickle.loads(parsed[text])

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(OmegaConf, "load", staticmethod(load))
        yield
