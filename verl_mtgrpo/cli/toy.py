"""Make a tiny policy that calls your own tools: ``mtgrpo toy``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError

_DESCRIPTION = """\
Make a policy of a million parameters that calls the tools of a file, with made-up arguments that fit their schemas and
some bad habits (no call, broken JSON, an unknown tool, a missing argument), and questions for it. So a recipe with
tools of your own can be trained on a CPU before it costs GPU hours. Less than a minute on an idle core.

  mtgrpo toy --tools tools.py
  mtgrpo toy --tools tools.py --data train.parquet --calls calls.jsonl

To train two steps of a command line with such a policy: mtgrpo doctor --try-step -- bash train.sh
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "toy",
        help="make a tiny policy that calls your own tools",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tools", type=Path, required=True, metavar="FILE", help="verl's function tools or tool YAML")
    parser.add_argument("--data", type=Path, metavar="PARQUET", help="your questions (default: made-up ones)")
    parser.add_argument(
        "--calls", type=Path, metavar="JSONL", help='good calls, {"name": …, "arguments": {…}} per line'
    )
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), metavar="DIR", help="default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the policy and print how to train it."""
    from omegaconf import OmegaConf

    from verl_mtgrpo.doctor.setup import Setup
    from verl_mtgrpo.doctor.tools import declared
    from verl_mtgrpo.init.tools import key_of
    from verl_mtgrpo.launch.command import TrainCommand
    from verl_mtgrpo.toy.assets import schemas_of
    from verl_mtgrpo.toy.policy import make_caller
    from verl_mtgrpo.toy.rows import first_rows, read_calls
    from verl_mtgrpo.toy.try_step import toy_overrides

    if not args.tools.is_file():
        raise ConfigError(f"there is no file {args.tools}", fix="name your file of tools by --tools")
    rows = first_rows(args.data)
    if args.data and not rows:
        raise ConfigError(f"{args.data} is not a parquet file with questions", fix="name one, or leave --data out")
    key, file = key_of(args.tools), os.path.abspath(args.tools)
    config = OmegaConf.create()
    OmegaConf.update(config, key, file)
    tools = declared(Setup(config))
    if not tools:
        raise ConfigError(f"{args.tools} declares no tool", fix="put verl's @function_tool above each function")
    print(f"a policy that calls {', '.join(tool.name for tool in tools)}, in {args.out}", flush=True)
    toy = make_caller(args.out.resolve(), schemas_of(tools), rows=rows, calls=read_calls(args.calls))
    overrides = [f"{key}={file}", *toy_overrides(toy)]
    print(f"train it:\n{TrainCommand('mt_grpo', cpu=True, overrides=tuple(overrides)).shell_text()}")
    return 0
