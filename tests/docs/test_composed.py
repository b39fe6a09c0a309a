"""Command lines for verl in the documentation compose with verl's real configs."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import verl_mtgrpo.config  # noqa: F401  (where Hydra looks)
from tests.docs.pages import Command
from tests.docs.test_commands import COMMANDS, is_overrides, of
from verl_mtgrpo.cli.main import build_parser
from verl_mtgrpo.launch.command import TrainCommand

TRAINER = ("python", "-m", "verl.trainer.main_ppo")
WITH_VERL = [command for command in of("mtgrpo") if "--" in command.words]


def composed(arguments):
    options = dict(word.removeprefix("--").split("=", 1) for word in arguments if word.startswith("--"))
    module = options.get("config-path", "pkg://verl.trainer.config").removeprefix("pkg://")
    with initialize_config_module(module, version_base=None):
        overrides = [word for word in arguments if not word.startswith("--")]
        run = compose(options.get("config-name", "ppo_trainer"), overrides)
    OmegaConf.resolve(run)
    return run


@pytest.mark.parametrize("command", of(*TRAINER), ids=str)
def test_verls_command_composes(command: Command):
    run = composed(command.words[len(TRAINER) :])
    assert run.reward.reward_manager.name == "mtgrpo"


@pytest.mark.parametrize("command", [one for one in COMMANDS if is_overrides(one)], ids=str)
def test_overrides_compose_with_a_group(command: Command):
    composed(["+mtgrpo=mt_grpo", *command.words])


@pytest.mark.parametrize("command", WITH_VERL, ids=str)
def test_what_mtgrpo_gives_verl_composes(command: Command):
    args = build_parser().parse_args(command.words[1:])
    overrides = args.overrides if "overrides" in args else args.targets
    composed(TrainCommand(preset=args.preset or "mt_grpo", cpu=args.cpu, overrides=tuple(overrides)).argv()[3:])
