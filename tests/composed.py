"""Compose verl's configs with Hydra, each only once per process, however many tests ask for it.

Half of the time for composing goes into parsing the same thirty YAML files, so :func:`parsing_once`, which conftest.py
turns on, also helps tests that need another config.
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
    """Return an unresolved config, as verl's main function gets it; each caller gets its own copy.

    Args:
        overrides: Overrides as on the command line.
        preset: The method to add (``+mtgrpo=…``), together with its search path.
        primary: ``--config-name``.
        module: ``--config-path``, a package.
    """
    sys.audit("tests.compose")  # counts for tests/costs.py even if another test has already paid for it
    group = (SEARCHPATH, f"+mtgrpo={preset}") if preset else ()
    return pickle.loads(_pickled(module, primary, (*group, *overrides)))


@cache
def _pickled(module: str, primary: str, overrides: tuple[str, ...]) -> bytes:
    """Compose and pickle, because composing takes a quarter of a second, and a copy three milliseconds."""
    with initialize_config_module(module, version_base=None):
        return pickle.dumps(compose(primary, list(overrides)))


@contextmanager
def parsing_once() -> Iterator[None]:
    """Remember the result of OmegaConf's parsing by text, and return a copy to each caller."""
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
