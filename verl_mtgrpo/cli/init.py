"""Switch a verl recipe to turn-level credit, in a folder of its own: ``mtgrpo init``."""

from __future__ import annotations

import argparse
from pathlib import Path

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError

_DESCRIPTION = """\
Read the command of verl's trainer in a shell script, or typed behind --, and write a folder with

  run.sh             runs your own script, unchanged, with the overrides that switch it to a preset
  turn_rewards.py    what each turn earns, for the tools of this recipe: yours to change

Nothing of the script or of the tools is run to read it, and none of your files is changed. What could not be worked out
is printed.

  mtgrpo init train.sh --tools tools.py
  mtgrpo init --preset turn_rloo --out sql_turns -- python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo ...
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "init",
        help="switch a verl recipe to turn-level credit, in a folder of its own",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="mt_grpo", help="config of the group mtgrpo (default: %(default)s)")
    parser.add_argument(
        "--tools", type=Path, metavar="FILE", help="the agent's tools, .py or .yaml (default: as in the command)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new folder (default: the script's name, _PRESET)")
    parser.add_argument("recipe", nargs="+", metavar="SCRIPT | -- COMMAND", help="a shell script, or the command")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the folder and print what was found, added and left open."""
    from verl_mtgrpo.init.failures import unreported
    from verl_mtgrpo.init.folder import added, doctor_line, write_folder
    from verl_mtgrpo.init.recipe import read_command, read_script
    from verl_mtgrpo.init.switch import decide, find_tools
    from verl_mtgrpo.launch.options import check_preset

    check_preset(args.preset, [])
    script = Path(args.recipe[0]) if len(args.recipe) == 1 else None
    if script is not None and not script.is_file():
        raise ConfigError(f"there is no script {script}", fix="name one, or give the whole command behind --")
    recipe = read_command(args.recipe) if script is None else read_script(script)
    tools, left = find_tools(recipe, args.tools)
    switch = decide(recipe, args.preset, tools)
    folder = args.out or Path(f"{script.stem if script else 'run'}_{args.preset}")
    files = write_folder(folder, recipe, switch, tools)
    print(f"read    {len(recipe.settings)} overrides of {script or 'the command'}; nothing of it was run")
    print(f"tools   {', '.join(tools.names) or 'none found'}{f' ({tools.file})' if tools.file else ''}")
    print(f"wrote   {', '.join(str(path.relative_to(folder.resolve())) for path in files)} in {folder}\n")
    print("added to the command")
    print(f"{added(switch.overrides)}\n")
    if open_ := [*left, *switch.open]:
        print("not decided here")
        print("".join(f"  ? {one}\n" for one in open_))
    for name in unreported(tools.file) if tools.file else ():
        print(f"warning: {name} seems never to report a failure: calls that it answers with an error are paid as if")
        print('    they had worked. Return text, 0.0, {"ok": False, "why": "..."} for them (docs/your-own-tool.md)\n')
    print(f"next\n  {doctor_line(folder.resolve())}")
    return 0
