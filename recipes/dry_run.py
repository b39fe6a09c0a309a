"""Try a recipe out: the script of each calls this in place of verl's trainer if DRY_RUN is set.

    python recipes/dry_run.py SCRIPT OVERRIDE...

DRY_RUN=print prints the overrides, one per line.

DRY_RUN=cpu runs two real training steps on this machine's CPU, as `mtgrpo doctor --try-step` does for any command. The
recipe's overrides come first and stay as they are; what a CPU and a tiny policy need is appended, and every value that
is changed is printed. The policy speaks the recipe's text format and searches a real index (made once in
runs/dry_run). Environment: DRY_RUN_OUT (folder, default runs/dry_run), LAUNCHER (a program that gets the trainer's
command, such as multi_node's one_node.sh).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Do with a recipe's overrides what DRY_RUN says; return 0 if that worked."""
    script, *overrides = arguments
    mode = os.environ.get("DRY_RUN")
    if mode == "cpu":
        return two_steps(Path(script).resolve().parent.name, overrides)
    if mode == "print":
        print(*overrides, sep="\n")
        return 0
    print(f"DRY_RUN={mode}, expected cpu, print or nothing", file=sys.stderr)
    return 1


def two_steps(name: str, overrides: Sequence[str]) -> int:
    """Train two steps of a recipe on the CPU; return 0 if both were logged."""
    from verl_mtgrpo.doctor.compose import parse
    from verl_mtgrpo.toy.try_step import Trial, try_steps

    out = Path(os.environ.get("DRY_RUN_OUT", "runs/dry_run")).resolve()
    return try_steps(Trial(name, parse(overrides), out / name, out, launcher=os.environ.get("LAUNCHER", "")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
