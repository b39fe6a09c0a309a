"""Save a dashboard for turn credit in Weights & Biases: ``mtgrpo panels``."""

from __future__ import annotations

import argparse
import importlib.util
import json

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError

_DESCRIPTION = """\
Save a view with panels for turn/…, tool/…, outcome/… and guard/… in a project of Weights & Biases
(trainer.logger=[console,wandb]); log in first (wandb login). Needs the extra `panels`.

trackio (trainer.logger=[console,trackio]) needs no such view: it groups metrics by their first word.

  mtgrpo panels my-team/my-project
  mtgrpo panels my-team/my-project --dry-run      # print the view as JSON; nothing is sent
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "panels",
        help="save a dashboard for turn credit in Weights & Biases",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="where the runs are logged")
    parser.add_argument("--name", default="Turn credit", help="name of the view (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the view as JSON and send nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the view, then print or save it."""
    entity, slash, project = args.project.partition("/")
    if not (entity and slash and project):
        raise ConfigError(f"{args.project!r} names no project", expected="ENTITY/PROJECT, as in its page's address")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "views of Weights & Biases need the package wandb-workspaces, which is not installed",
            fix='pip install "verl-mtgrpo[panels]"; from a checkout: pip install ".[panels]"',
        )
    from verl_mtgrpo.report.panels import wandb_view

    view = wandb_view(entity, project, args.name)
    if args.dry_run:
        model = view._to_model()  # pyright: ignore[reportPrivateUsage]
        spec = model.model_dump(mode="json", by_alias=True, exclude_none=True)
        print(json.dumps(spec, indent=2, ensure_ascii=False))
        return 0
    view.save()
    print(f"saved: {view.url}")
    return 0
