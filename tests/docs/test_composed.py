"""Command lines for verl in the documentation compose with verl's real configs."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from tests.composed import composed
from tests.docs.pages import COMMANDS, Command, is_overrides, of
from verl_mtgrpo.cli.main import build_parser
from verl_mtgrpo.launch.command import TrainCommand

pytestmark = pytest.mark.compose

TRAINER = ("python", "-m", "verl.trainer.main_ppo")
WITH_VERL = [command for command in of("mtgrpo") if "--" in command.words and "bash" not in command.words]


def resolved(arguments):
    options = dict(word.removeprefix("--").split("=", 1) for word in arguments if word.startswith("--"))
    module = options.get("config-path", "pkg://verl.trainer.config").removeprefix("pkg://")
    overrides = [word for word in arguments if not word.startswith("--")]
    run = composed(*overrides, primary=options.get("config-name", "ppo_trainer"), module=module)
    OmegaConf.resolve(run)
    return run


@pytest.mark.parametrize("command", of(*TRAINER), ids=str)
def test_verls_command_composes(command: Command):
    run = resolved(command.words[len(TRAINER) :])
    assert run.reward.reward_manager.name == "mtgrpo"


@pytest.mark.parametrize("command", [one for one in COMMANDS if is_overrides(one)], ids=str)
def test_overrides_compose_with_a_group(command: Command):
    resolved(["+mtgrpo=mt_grpo", *command.words])


@pytest.mark.parametrize("command", WITH_VERL, ids=str)
def test_what_mtgrpo_gives_verl_composes(command: Command):
    args = build_parser().parse_args(command.words[1:])
    overrides = args.overrides if "overrides" in args else args.targets
    resolved(TrainCommand(preset=args.preset or "mt_grpo", cpu=args.cpu, overrides=tuple(overrides)).argv()[3:])
