"""Our settings inside verl's config: ``algorithm.turn.*``, ``reward.turn.*`` and ``trainer.turn.*``.

Every key has a default, and an unknown key is an error that lists the known ones (a misspelt knob would
otherwise silently keep its default).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.watch.guards import GuardSettings

T = TypeVar("T")


@dataclass(frozen=True)
class TurnRewardSettings:
    """``reward.turn``: which rewards are computed and where they are paid."""

    preset: str = "paper_v1"
    """A preset (``paper_v1``, ``paper_v2``, ``search_r1_em``, ``search_r1_format``, ``judge``, ``judge_paper``) or a
    function of your own: ``package.module:fn`` or ``file.py:fn``."""
    outcome: str = "preset"
    """``preset``: the outcome reward comes from the preset; ``compute_score``: from verl's reward function
    (``reward.custom_reward_function``, or verl's own for the row's ``data_source``: ``nq`` of ``mtgrpo data`` is scored
    as verl's ``searchR1_nq``). What that function is given as ``solution_str``: ``reward.turn.solution``."""
    pay: str = "turns"
    """``turns``: each turn's reward on its last token (MT-GRPO, MT-PPO); ``merged``: their sum with the
    outcome on the last turn; ``outcome``: the outcome only."""
    repeat_penalty: float = 0.0
    """Taken from a turn's reward for each search in it that repeats an earlier one of the rollout."""
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    """``reward.turn.judge.*``: which judge, if ``preset`` is ``judge`` or ``judge_paper``."""
    solution: str = "turns"
    """What ``outcome=compute_score`` gives to the reward function as ``solution_str``. ``turns``: what the model wrote,
    its turns joined by newlines, without tool results, so that an answer in a result is not taken for the model's;
    ``response``: verl's whole response, as verl's own reward manager decodes it, tool results and role words included,
    special tokens left out."""


@dataclass(frozen=True)
class DumpSettings:
    """``trainer.turn.dump``: what goes into verl's ``trainer.rollout_data_dir`` beside text and score."""

    groups: int = 16
    """Groups written per step, whole and chosen at random; 0: all. A rollout with its passages takes 10 to 50
    kilobytes."""
    documents: bool = True
    """False: leave out the passages as the index has them. What the model read of them stays, and so do their ids."""


@dataclass(frozen=True)
class TrainerTurnSettings:
    """``trainer.turn``: how a run is checked, watched and written down."""

    preflight: str = "full"
    """What is checked before Ray starts. ``full``: settings, files, tokenizer, index and judge; ``config``: settings
    only, for a head node that sees none of the others; ``off``: nothing."""
    preset: str = ""
    """The config group ``+mtgrpo=NAME`` of this run, written by the group itself, so that overrides that contradict the
    group are found at the start. Empty: everything is set by hand."""
    on_purpose: tuple[str, ...] = ()
    """Keys whose values are intended although they are refused as likely mistakes. An unknown key is an error that
    lists those that may stand here."""
    guards: GuardSettings = field(default_factory=GuardSettings)
    """``trainer.turn.guards.*``: thresholds at which a guard warns."""
    dump: DumpSettings = field(default_factory=DumpSettings)
    """``trainer.turn.dump.*``: which rollouts are written with their transcripts."""


PREFLIGHT = ("full", "config", "off")
PAY = ("turns", "merged", "outcome")
OUTCOME = ("preset", "compute_score")
SOLUTION = ("turns", "response")
ON_PURPOSE = (
    "algorithm.adv_estimator",
    "critic.enable",
    "reward.turn.pay",
    "algorithm.turn.turn_coef",
    "reward.turn.repeat_penalty",
    "actor_rollout_ref.rollout.multi_turn.tool_config_path",
)
"""Keys that ``trainer.turn.on_purpose`` may name."""


def estimator_settings(name: str, algorithm: Any) -> dict[str, Any]:
    """Read ``algorithm.turn`` for the estimator ``name``: its knobs are its keyword arguments.

    A knob of another estimator is refused as well as a misspelt one: it would do nothing. verl's
    ``norm_adv_by_std_in_grpo=False`` means ``scale=none``.

    Args:
        name: One of :data:`verl_mtgrpo.credit.ESTIMATORS`.
        algorithm: verl's ``algorithm`` node (DictConfig, mapping or dataclass) or None.
    """
    known = ESTIMATORS[name].knobs
    settings = known | _read_values(known, _child(algorithm, "turn"), f"algorithm.turn of {name}")
    if _child(algorithm, "norm_adv_by_std_in_grpo") is False:
        if "whiten" in known:
            raise ConfigError(
                f"algorithm.norm_adv_by_std_in_grpo=False says nothing about {name}",
                fix="leave it True, and set algorithm.turn.whiten=False if advantages are not to be whitened",
            )
        if "scale" not in known:
            raise ConfigError(
                f"algorithm.norm_adv_by_std_in_grpo=False, but {name} divides by a standard deviation by definition",
                fix="leave it True or choose mt_grpo or turn_rloo",
            )
        settings["scale"] = "none"
    return settings


def turn_reward_settings(reward: Any) -> TurnRewardSettings:
    """Read ``reward.turn`` from verl's ``reward`` node."""
    settings = read_settings(TurnRewardSettings, _child(reward, "turn"), "reward.turn")
    for name, choices in (("pay", PAY), ("outcome", OUTCOME), ("solution", SOLUTION)):
        if (value := getattr(settings, name)) not in choices:
            raise ConfigError(
                f"reward.turn.{name} is {value!r}",
                expected=f"one of {choices}{did_you_mean(value, choices)}",
            )
    if not math.isfinite(settings.repeat_penalty):
        raise ConfigError(f"reward.turn.repeat_penalty is {settings.repeat_penalty}", expected="a finite number >= 0")
    return settings


def trainer_turn_settings(trainer: Any) -> TrainerTurnSettings:
    """Read ``trainer.turn`` from verl's ``trainer`` node."""
    settings = read_settings(TrainerTurnSettings, _child(trainer, "turn"), "trainer.turn")
    if settings.preflight not in PREFLIGHT:
        raise ConfigError(f"trainer.turn.preflight is {settings.preflight!r}", expected=f"one of {PREFLIGHT}")
    for key in settings.on_purpose:
        if key not in ON_PURPOSE:
            raise ConfigError(
                f"trainer.turn.on_purpose names {key}",
                expected=f"some of {ON_PURPOSE}{did_you_mean(key, ON_PURPOSE)}",
            )
    if settings.dump.groups < 0:
        raise ConfigError(
            f"trainer.turn.dump.groups is {settings.dump.groups}",
            expected="a number of groups or 0 for all",
        )
    if settings.guards.steps < 1:
        raise ConfigError(f"trainer.turn.guards.steps is {settings.guards.steps}", expected="1 or more")
    for name, value in vars(settings.guards).items():
        if math.isnan(value):  # beyond 0 and 1 a guard always or never fires, which may be meant
            raise ConfigError(f"trainer.turn.guards.{name} is {value}", expected="a share from 0 to 1")
    return settings


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """`` (did you mean x?)``, if one of the known names looks like ``name``; else nothing."""
    by_form = {_plain(one): one for one in known}
    close = difflib.get_close_matches(_plain(str(name)), by_form, n=1, cutoff=0.6)
    return f" (did you mean {by_form[close[0]]}?)" if close else ""


def _plain(name: str) -> str:
    """Names that differ in case, dashes or underscores only have the same plain form."""
    return name.lower().replace("-", "").replace("_", "")


def _child(node: Any, key: str) -> Any:
    if node is None:
        return None
    if isinstance(node, Mapping | DictConfig):
        return node.get(key)
    return getattr(node, key, None)


def read_settings(cls: type[T], node: Any, where: str) -> T:
    """Fill the dataclass ``cls`` from a config node; unknown keys and wrong types are errors that name ``where``."""
    known = {
        one.name: one.default if one.default is not MISSING else one.default_factory()  # type: ignore[misc]
        for one in fields(cls)  # type: ignore[arg-type]
    }
    return cls(**_read_values(known, node, where))


def _read_values(known: Mapping[str, Any], node: Any, where: str) -> dict[str, Any]:
    """Return the values that ``node`` sets, each of the type of its default in ``known``."""
    if node is None:
        return {}
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}", expected="a mapping of settings")
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        listed = ", ".join(f"{name} ({default})" for name, default in known.items())
        meant = "".join(did_you_mean(name, known) for name in unknown)
        raise ConfigError(f"{where} has unknown keys {unknown}", fix=f"known keys and their defaults: {listed}{meant}")
    return {str(key): _as_type(value, known[str(key)], f"{where}.{key}") for key, value in values.items()}


def _as_type(value: Any, default: Any, where: str) -> Any:
    """Numbers may come as strings or ints from a command line; anything else must be of the default's type."""
    if is_dataclass(default):
        return read_settings(type(default), value, where)
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(map(str, value))
    elif isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool):
        return value
    kind = "list" if isinstance(default, tuple) else type(default).__name__
    raise ConfigError(f"{where} is {value!r}", expected=f"a {kind} like {default!r}")
