"""Import the modules of ``VERL_USE_EXTERNAL_MODULES``, which ``import verl`` imports in every process."""

from __future__ import annotations

import importlib
import os

from verl_mtgrpo.errors import ConfigError

MODULES = "VERL_USE_EXTERNAL_MODULES"
MODULES_FIX = (
    "fix it (names are separated by commas, without spaces), put the module's folder on PYTHONPATH, or unset the "
    "variable"
)


def load_external_modules() -> None:
    """Import the modules in verl's order.

    verl does so when it is imported, but that may have been before the variable was set.

    Raises:
        ConfigError: A module cannot be imported; ``import verl`` would fail too.
    """
    named = os.environ.get(MODULES)
    for name in named.split(",") if named else ():
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # the module is the user's: importing it may raise anything
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"the environment variable {MODULES} names {name!r}, which cannot be imported: {what}",
                fix=MODULES_FIX,
            ) from error
