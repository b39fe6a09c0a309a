"""The ``mtgrpo`` command: one thin module per subcommand, imported without torch, verl or ray.

A subcommand module has ``add_parser(subparsers)``, which declares its arguments and sets
``run=<function(args) -> exit code>`` as a default of its parser. A command inside a command also sets ``refuse``,
the ``error`` method of its own parser.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Sequence
from typing import Any

from verl_mtgrpo.cli import (
    compare,
    data,
    demo,
    doctor,
    eval,
    export,
    index,
    init,
    lab,
    panels,
    query,
    report,
    serve,
    toy,
    train,
)
from verl_mtgrpo.errors import MTGRPOError
from verl_mtgrpo.version import __version__

_SUBCOMMANDS = (demo, init, doctor, toy, compare, train, report, export, panels, eval, data, index, query, serve, lab)

# What a shell reports for a command ended by Ctrl-C.
_EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reads options by their whole names only: ``--group`` is not ``--groups``. Subcommands are such parsers too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = _Parser(prog="mtgrpo", description="Turn-level credit for LLM agents trained with verl.")
    parser.add_argument("--version", action="version", version=f"mtgrpo {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in _SUBCOMMANDS:
        module.add_parser(subparsers)
    for subparser in subparsers.choices.values():
        subparser.set_defaults(refuse=subparser.error)
        # SUPPRESS: without it, the subcommand's default would override a --debug before the subcommand.
        subparser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = build_parser()
    # parse_args would name what is left over in the usage of `mtgrpo` instead of the command's.
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        getattr(args, "refuse", parser.error)(f"unrecognized arguments: {' '.join(unknown)}")
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    # A shell without job control starts background commands with SIGINT ignored, and Python keeps that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("mtgrpo: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except (MTGRPOError, OSError) as error:
        if args.debug:
            raise
        print(f"mtgrpo: error: {error}{_what_to_do(error)}", file=sys.stderr)
        return 1


def _what_to_do(error: Exception) -> str:
    """Return the fix for an operating system error, whose message has none; our own errors have one."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "; make room on the disk (--out), or write to another one" if full else ""


if __name__ == "__main__":
    sys.exit(main())
