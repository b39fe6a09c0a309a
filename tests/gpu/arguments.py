"""Declare the kit's options without any package, so that it can report a missing torch instead of failing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SIZES = "1024x8192,4096x8192"


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """Add the options of both entry points."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--repeats", type=int, default=15, help="of each timed call")
    parser.add_argument("--sizes", default=SIZES, help="(B, T) of the times; '' for none")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for the JSON; $OUT if set")
    parser.add_argument("--commit", help="what to write down where there is no git")
    return parser


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse `1024x8192,4096x8192` into pairs."""
    return tuple((int(rows), int(length)) for rows, length in (size.split("x") for size in text.split(",") if size))
