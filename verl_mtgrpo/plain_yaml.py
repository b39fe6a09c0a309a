"""Read YAML that a user wrote."""

from __future__ import annotations

from typing import Any

import yaml


def read_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return what a YAML text says, as plain Python objects.

    Raises:
        yaml.YAMLError: The text cannot be read. PyYAML lets some of Python's own errors pass, such as that of the date
            2026-13-45; such an error is the cause of the one that is raised.
    """
    try:
        return loader(text).get_single_data()
    except yaml.YAMLError:
        raise
    except Exception as error:  # of any kind: ValueError, KeyError, RecursionError, …
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
