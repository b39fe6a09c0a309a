"""The commands of ``mtgrpo``, one file each."""

from __future__ import annotations

import argparse
from typing import Any, Protocol


class Subparsers(Protocol):
    """What ``ArgumentParser.add_subparsers`` returns; argparse keeps its class private."""

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser:
        """Add a subcommand."""
        ...
