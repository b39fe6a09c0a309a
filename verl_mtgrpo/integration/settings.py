"""Our settings inside verl's config: ``algorithm.turn.*``, ``reward.turn.*`` and ``trainer.turn.*``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, Strict, create_model

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.settings import Number, Settings
from verl_mtgrpo.watch.guards import GuardSettings

Pay = Literal["turns", "merged", "outcome"]
PAY = get_args(Pay)
OnPurpose = Literal[
    "algorithm.adv_estimator",
    "critic.enable",
    "reward.turn.pay",
    "algorithm.turn.turn_coef",
    "reward.turn.repeat_penalty",
    "actor_rollout_ref.rollout.multi_turn.tool_config_path",
]


class TurnRewardSettings(Settings):
    """``reward.turn``: which rewards are computed and where they are paid."""

    preset: str = "paper_v1"
    """A preset (``paper_v1``, ``paper_v2``, ``search_r1_em``, ``search_r1_format``, ``judge``, ``judge_paper``) or a
    function of your own: ``package.module:fn`` or ``file.py:fn``."""
    outcome: Literal["preset", "compute_score"] = "preset"
    """``preset``: the outcome reward comes from the preset; ``compute_score``: from verl's reward function
    (``reward.custom_reward_function``, or verl's own for the row's ``data_source``: ``nq`` of ``mtgrpo data`` is scored
    as verl's ``searchR1_nq``). What that function is given as ``solution_str``: ``reward.turn.solution``."""
    pay: Pay = "turns"
    """``turns``: each turn's reward on its last token (MT-GRPO, MT-PPO); ``merged``: their sum with the
    outcome on the last turn; ``outcome``: the outcome only."""
    repeat_penalty: Number = 0.0
    """Taken from a turn's reward for each search in it that repeats an earlier one of the rollout."""
    judge: JudgeSettings = JudgeSettings()
    solution: Literal["turns", "response"] = "turns"
    """What ``outcome=compute_score`` gives to the reward function as ``solution_str``. ``turns``: what the model wrote,
    its turns joined by newlines, without tool results, so that an answer in a result is not taken for the model's;
    ``response``: verl's whole response, as verl's own reward manager decodes it, tool results and role words included,
    special tokens left out."""


class DumpSettings(Settings):
    """``trainer.turn.dump``: what goes into verl's ``trainer.rollout_data_dir`` beside text and score."""

    groups: int = Field(default=16, ge=0)
    """Groups written per step, whole and chosen at random; 0: all. A rollout with its passages takes 10 to 50
    kilobytes."""
    documents: bool = True
    """False: leave out the passages as the index has them. What the model read of them stays, and so do their ids."""


class BranchSettings(Settings):
    """``trainer.turn.branch``: how ``mtgrpo_tree_agent`` grows a tree of rollouts for each training prompt."""

    grow: Literal["none", "full", "arpo", "at2po", "random"] = "none"
    """Where a tree branches. ``none``: nowhere, as ``mtgrpo_tool_agent``; ``full``: at each of the first turns (the
    paper's K-turn MT-GRPO); ``arpo``: after tool results that surprise the policy;
    ``at2po``: in rounds, the turns that it was least certain of are written again; ``random``: in rounds, from any turn
    (Tree-GRPO). A tree has ``actor_rollout_ref.rollout.n`` leaves, each of them a rollout."""
    width: int | None = Field(default=None, ge=2)
    """``full`` and ``arpo``: children of a state that branches, the one that would be there anyway included. null: 2
    with ``arpo``; with ``full`` what ``actor_rollout_ref.rollout.n`` allows: its factors, spread over the turns."""
    turns: int | None = Field(default=None, ge=1)
    """``full``: how many turns branch, from the first; null: all but the last that
    ``actor_rollout_ref.rollout.multi_turn.max_assistant_turns`` allows. ``width`` to the power of ``turns`` has to be
    ``actor_rollout_ref.rollout.n``."""
    initial: int | None = Field(default=None, ge=1)
    """``arpo``, ``at2po`` and ``random``: rollouts that begin at the prompt, before any branch; null: half of
    ``actor_rollout_ref.rollout.n``. What branches leave of the budget is filled with further ones."""
    probability: Number = 0.5
    """``arpo``: a tool result branches with this probability (alpha) if the turn after it is as surprising as the
    rollout's first turn."""
    weight: Number = 0.2
    """``arpo``: what each nat of surprisal beyond the first turn's adds to that probability (beta)."""
    decide: Literal["coin", "threshold"] = "coin"
    """``arpo``: ``coin``: branch with that probability, as its code does; ``threshold``: branch if the probability is
    above ``threshold``, as its paper has it."""
    threshold: Number = 0.5
    """``arpo`` with ``decide=threshold``: branch above this (tau)."""
    tokens: int = Field(default=20, ge=1)
    """``arpo``: how many tokens of a turn its surprisal is averaged over, from the turn's first."""
    rounds: int = Field(default=2, ge=1)
    """``at2po`` and ``random``: rounds over which the branches are spread; later ones see the turns of earlier ones."""
    sibling_penalty: Number = 0.05
    """``at2po``: taken from a turn's surprisal, in nats, for each sibling that it has already."""
    seed: int = 0
    """Seed of the draws: together with step, question and node it decides where a tree branches."""


class TrainerTurnSettings(Settings):
    """``trainer.turn``: how a run is checked, watched and written down."""

    preflight: Literal["full", "config", "off"] = "full"
    """What is checked before Ray starts. ``full``: settings, files, tokenizer, index and judge; ``config``: settings
    only, for a head node that sees none of the others; ``off``: nothing."""
    preset: str = ""
    """The config group ``+mtgrpo=NAME`` of this run, written by the group itself, so that overrides that contradict the
    group are found at the start. Empty: everything is set by hand."""
    on_purpose: tuple[OnPurpose, ...] = Field(default=(), strict=False)
    """Keys whose values are intended although they are refused as likely mistakes. An unknown key is an error that
    lists those that may stand here."""
    guards: GuardSettings = GuardSettings()
    dump: DumpSettings = DumpSettings()
    branch: BranchSettings = BranchSettings()


class _Knobs(Settings, allow_inf_nan=True, arbitrary_types_allowed=True):
    """The knobs of an estimator, which itself says what numbers it can work with."""


_KINDS: dict[type, Any] = {
    float: Number,
    tuple: Annotated[tuple[Any, ...], Strict(False)],
}  # YAML has lists and no tuples


def estimator_settings(name: str, algorithm: Any) -> dict[str, Any]:
    """Read ``algorithm.turn`` for the estimator ``name``: its knobs are its keyword arguments.

    A knob of another estimator is refused as well as a misspelt one: it would do nothing. verl's
    ``norm_adv_by_std_in_grpo=False`` means ``scale=none``.

    Args:
        name: One of :data:`verl_mtgrpo.credit.ESTIMATORS`.
        algorithm: verl's ``algorithm`` node (DictConfig, mapping or dataclass) or None.
    """
    known = ESTIMATORS[name].knobs
    fields: Any = {knob: (_KINDS.get(type(default), type(default)), default) for knob, default in known.items()}
    model = create_model(name, __base__=_Knobs, **fields)
    settings = dict(model.read(_child(algorithm, "turn"), "algorithm.turn", name))
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
    return TurnRewardSettings.read(_child(reward, "turn"), "reward.turn")


def trainer_turn_settings(trainer: Any) -> TrainerTurnSettings:
    """Read ``trainer.turn`` from verl's ``trainer`` node."""
    return TrainerTurnSettings.read(_child(trainer, "turn"), "trainer.turn")


def _child(node: Any, key: str) -> Any:
    if isinstance(node, Mapping | DictConfig):
        found = node.get(key)
    else:
        found = getattr(node, key, None)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
