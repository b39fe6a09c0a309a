"""Turn a command line of verl's trainer into the config that the trainer would compose from it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_mtgrpo.doctor.findings import one_line
from verl_mtgrpo.errors import ConfigError

MAIN = "verl.trainer.main_ppo"
PRIMARY = "ppo_trainer"
_VALUE_OPTIONS = {"--config-path": "path", "-cp": "path", "--config-name": "name", "-cn": "name"}
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
_UNKNOWN_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")
_REPLACED = re.compile(r"Error merging override (?P<override>.*)|node `(?P<key>[\w.]+)` is not a container")
"""Hydra's messages about a group of settings that was replaced by a list, or by a value or null."""


_OURS = re.compile(r"(reward|algorithm|trainer)\.turn\.")
"""Our settings, of which an unknown one is an error, with a plus too."""


@dataclass(frozen=True)
class CommandLine:
    """A command line that a user has typed or pasted.

    Attributes:
        overrides: Hydra overrides.
        path: ``--config-path``; None for verl's default.
        name: ``--config-name``; None for verl's default.
        env: Environment variables that are set before the program.
    """

    overrides: tuple[str, ...]
    path: str | None = None
    name: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def names_group(self) -> bool:
        """Return True if the command line already names our config group."""
        return self.name == "mtgrpo_trainer" or any(re.match(r"\+{0,2}mtgrpo=", one) for one in self.overrides)


def parse(words: Sequence[str]) -> CommandLine:
    """Read a list of overrides, or a whole pasted command.

    Raises:
        ConfigError: There is an option with which Hydra would do something else than start a run.
    """
    before, rest = _split_at_program([word for word in words if word.strip(" \\\n")])
    overrides, options = [], dict[str, str]()
    while rest:
        word = rest.pop(0)
        option, given, value = word.partition("=")
        if option in _VALUE_OPTIONS:
            if not given and not rest:
                raise ConfigError(f"{option} has no value", fix=f"add one, as in {option}=NAME")
            options[_VALUE_OPTIONS[option]] = value if given else rest.pop(0)
        elif word.startswith("-"):
            raise ConfigError(
                f"{word} is not an override and not understood here",
                fix="remove it, or write a folder of configs as hydra.searchpath=[file:///folder]",
            )
        else:
            overrides.append(word.strip())
    env = dict(word.split("=", 1) for word in before if _ASSIGNMENT.match(word))
    return CommandLine(tuple(overrides), options.get("path"), options.get("name"), env)


def _split_at_program(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before ``verl.trainer.main_ppo`` (none if it is missing), and the words after it."""
    for position, word in enumerate(words):
        if word == MAIN or word.endswith("main_ppo.py"):
            return words[:position], words[position + 1 :]
    return [], words


def compose_config(line: CommandLine) -> Any:
    """Return the unresolved config, as the trainer's main function gets it.

    Raises:
        ConfigError: Hydra cannot compose it; the message says why and, if possible, suggests what was meant.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name = (line.name or PRIMARY).removesuffix(".yaml")
    try:
        with _initialised(line.path):
            config = compose(name, list(line.overrides))
        OmegaConf.to_container(config, resolve=True)  # the trainer does this too; errors should show here
    except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
        raise _explained(error) from error
    return config


def _initialised(path: str | None) -> Any:
    """Initialise Hydra so that it looks for configs in the same places as the trainer."""
    from hydra import initialize_config_dir, initialize_config_module

    if path is None:
        return initialize_config_module("verl.trainer.config", version_base=None)
    if path.startswith("pkg://"):
        return initialize_config_module(path.removeprefix("pkg://").replace("/", "."), version_base=None)
    if not os.path.isabs(path):  # relative to the program's file, as in verl's --config-path=config
        import verl.trainer

        path = str(Path(verl.trainer.__path__[0]) / path)
    return initialize_config_dir(os.path.realpath(path), version_base=None)


def _explained(error: Exception) -> ConfigError:
    """Return Hydra's message in one line, with a fix."""
    from verl_mtgrpo.integration.parts import GROUPS

    message = str(error)
    unknown, options = _UNKNOWN_KEY.search(message), message.partition("Available options")
    if unknown:
        key = unknown["key"]
        if key in GROUPS:
            fix = f"add it with a plus: +{key}=NAME"
            return ConfigError(f"{key} is a config group that is not part of verl's config yet", fix=fix)
        others = [one for one in _known_keys() if one != key and not one.startswith(f"{key}.")]
        close = difflib.get_close_matches(key, others, n=3, cutoff=0.8)
        meant = f"did you mean {' or '.join(close)}?" if close else "correct the name"
        fix = meant if close and _OURS.match(key) else f"{meant} (to add a new key, write +{key}=...)"
        return ConfigError(f"verl has no setting {key}", fix=fix)
    if options[1]:
        _, _, listed = options[2].partition(":")
        names = [name for name in listed.split("Config search path")[0].split() if not name.startswith("_")]
        return ConfigError(one_line(options[0]), fix=f"choose one of {', '.join(names)}")
    if replaced := _REPLACED.search(message):
        what = replaced["override"] or replaced["key"]
        reason = one_line(str(error.__cause__).partition("full_key")[0])
        message = f"{what} cannot be set ({reason})"
        if replaced["key"]:
            message = f"{what} was replaced as a whole, but other settings refer to its keys"
        return ConfigError(message, fix=f"set single keys instead ({what.partition('=')[0].lstrip('+')}.NAME=VALUE)")
    if isinstance(error, TypeError | ValueError):  # Hydra fails on a value where it expects a mapping or a list
        message = f"Hydra cannot apply the overrides: {type(error).__name__}: {one_line(message)}"
        return ConfigError(message, fix="look for one that replaces a whole group of settings, and set single keys")
    if any(
        name in message for name in ("mtgrpo_asset", "mtgrpo_search_tool", "mtgrpo_rewards", "mtgrpo_skip_tokenizer")
    ):
        return ConfigError(one_line(message), fix="the plugin is not loaded here: see the check plugin")
    return ConfigError(one_line(message), fix="fix it on the command line")


def _known_keys() -> list[str]:
    """Return every key of verl's config combined with our groups."""
    from hydra import compose
    from omegaconf import OmegaConf

    with _initialised(None):
        groups = ["hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo"]
        config = OmegaConf.to_container(compose(PRIMARY, groups), resolve=False)
    return list(_keys(config, ""))


def _keys(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return []
    found = []
    for key, value in node.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        found += [dotted, *_keys(value, dotted)]
    return found
