"""Find values of the wrong type, which verl cannot use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup

WHOLE_NUMBERS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    f"{ROLLOUT}.n",
    f"{MULTI_TURN}.max_tool_response_length",
    "trainer.nnodes",
)
WHOLE_NUMBERS_OR_NULL = (
    "data.gen_batch_size",
    f"{MULTI_TURN}.max_assistant_turns",
    f"{ROLLOUT}.max_model_len",
)
TEXTS_OR_NULL = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.custom_chat_template",
    f"{MULTI_TURN}.tool_config_path",
    f"{MULTI_TURN}.function_tool_path",
)
FILES = ("data.train_files", "data.val_files")
MAPPINGS_OR_NULL = ("data.apply_chat_template_kwargs",)
OUR_GROUPS = (
    *("algorithm.turn", "reward.turn", "reward.turn.judge"),
    *("trainer.turn", "trainer.turn.guards", "trainer.turn.dump", "trainer.turn.dense"),
)
"""Our groups of settings, each after the one that it is in."""
_ABSENT = object()


def values(setup: Setup) -> Iterator[Finding]:
    """Yield a finding for each value that no run could use; keys that are not in the config are left alone."""
    for keys, fits, expected in (
        (WHOLE_NUMBERS, _is_whole, "a whole number of at least 1"),
        (WHOLE_NUMBERS_OR_NULL, _or_null(_is_whole), "a whole number of at least 1, or null"),
        (TEXTS_OR_NULL, _or_null(_is_text), "a text, or null"),
        (FILES, _or_null(_is_text_or_texts), "a path, or a list of paths"),
        (MAPPINGS_OR_NULL, _or_null(_is_mapping), "a mapping, or null"),
    ):
        for key in keys:
            value = OmegaConf.select(setup.config, key, default=_ABSENT)
            if value is not _ABSENT and not fits(value):
                shown = "null" if value is None else repr(value)
                yield Finding("values", "fail", f"{key} is {shown}, expected {expected}", f"set {key} to {expected}")
    yield from _our_groups(setup.config)


def _our_groups(config: Any) -> Iterator[Finding]:
    """Yield a finding for each of our groups of settings that was replaced as a whole, such as by null."""
    replaced: list[str] = []
    for key in OUR_GROUPS:
        if any(key.startswith(f"{outer}.") for outer in replaced):
            continue
        value = OmegaConf.select(config, key, default=_ABSENT)
        if value is _ABSENT or _is_mapping(value):
            continue
        replaced.append(key)
        name = OmegaConf.select(config, "algorithm.adv_estimator")
        owner = f" of {name}" if key == "algorithm.turn" and name in ESTIMATORS else ""
        message = f"{key}{owner} is {'null' if value is None else repr(value)}, expected a mapping of settings"
        yield Finding("values", "fail", message, f"remove this value; set single keys instead ({key}.NAME=VALUE)")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, ListConfig) and all(isinstance(one, str) for one in value))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, DictConfig)


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def null_or_fits(value: Any) -> bool:
        return value is None or fits(value)

    return null_or_fits
