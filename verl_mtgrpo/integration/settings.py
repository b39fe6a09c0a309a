"""Our settings inside verl's config: ``algorithm.turn.*``, ``reward.turn.*`` and ``trainer.turn.*``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, Strict, create_model

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.deciders.settings import DecideSettings
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.rewards.any_tool.settings import ToolUseSettings
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.roles.settings import RolesSettings
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
]


JUDGED_BY = "pkg://verl_mtgrpo.rewards.judge"
"""A reward function that only stands in: verl asks for one before it starts a judge of its own."""


class TurnRewardSettings(Settings):
    """``reward.turn``: which rewards are computed and where they are paid."""

    preset: str = "paper_v1"
    """A preset (``paper_v1``, ``paper_v2``, ``search_r1_em``, ``search_r1_format``, ``tool_use``, ``env``,
    ``judge``, ``judge_paper``) or a function of your own: ``package.module:fn`` or ``file.py:fn``. The groups choose
    ``paper_v1``, or ``tool_use`` if ``function_tool_path`` names tools."""
    outcome: Literal["auto", "preset", "compute_score"] = "auto"
    """``preset``: the outcome reward comes from the preset; ``compute_score``: from verl's reward function
    (``reward.custom_reward_function``, or verl's own for the row's ``data_source``: ``nq`` of ``mtgrpo data`` is scored
    as verl's ``searchR1_nq``); ``auto``: from ``reward.custom_reward_function`` if there is one, and otherwise from the
    preset. What that function is given as ``solution_str``: ``reward.turn.solution``."""
    pay: Pay = "turns"
    """``turns``: each turn's reward on its last token (MT-GRPO, MT-PPO); ``merged``: their sum with the
    outcome on the last turn; ``outcome``: the outcome only."""
    repeat_penalty: Number = 0.0
    """Taken from a turn's reward for each search in it that repeats an earlier one of the rollout."""
    tool_use: ToolUseSettings = ToolUseSettings()
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
    ``actor_rollout_ref.rollout.multi_turn.max_assistant_turns`` allows, and two if it sets no limit. ``width`` to the
    power of ``turns`` has to be ``actor_rollout_ref.rollout.n``."""
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


class TurnCriticSettings(Settings):
    """``trainer.turn.critic``: how a critic of states and turns learns (estimators that ask for ``values_after``)."""

    rounds: int = Field(default=1, ge=1)
    """How often per step the critic's targets are computed; after each time it makes ``critic.ppo_epochs`` passes."""
    memory: int = Field(default=0, ge=0)
    """Rollouts of earlier steps that are kept for the critic, which learns the value of their turns again; 0: none. One
    takes about 13 bytes per token, in the trainer's memory and in each checkpoint."""
    max_age: int | None = Field(default=None, ge=1)
    """Rollouts of more steps ago than this are forgotten; null: only when the memory is full."""
    replay: Number = Field(default=1.0, gt=0)
    """Rollouts of earlier steps learned in each round, as a multiple of the step's own, in whole mini-batches, and no
    more than there are."""

    def replayed(self, own: int, kept: int, mini_batch: int) -> int:
        """Return how many earlier rows a round learns.

        Args:
            own: The step's own rows.
            kept: Rows in the memory.
            mini_batch: Rows of a mini-batch of the critic.
        """
        return int(min(round(self.replay * own, 6), kept)) // mini_batch * mini_batch


class EnvironmentSettings(Settings):
    """``trainer.turn.environment``: which environment ``mtgrpo_env_agent`` plays, and how."""

    name: str = ""
    """The environment that ``mtgrpo_env_agent`` plays: a packaged one (``gymnasium``, ``frozen_lake``) or a class of
    your own, ``package.module:Class`` or ``file.py:Class``."""
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Its keyword arguments. New keys need a ``+``, as in ``+trainer.turn.environment.options.size=4``."""
    role: Literal["user", "tool"] = "user"
    """Role of the messages in which observations reach the model."""
    timeout_s: Number = Field(default=60.0, gt=0)
    """Longest time in seconds for one call of the environment. A rollout that waits longer is left out of the update
    and counted."""
    seed: int = 0
    """Together with the content of a row it gives the seed that ``reset`` gets, the same for all rollouts of the
    row."""


class ProbeSettings(Settings):
    """``trainer.turn.probe``: how the gold answer is measured, for dense rewards that ask for ``answer_log_probs``."""

    by: Literal["policy", "reference"] = "policy"
    """Whose log-probs of the gold answer are measured: those of the ``policy`` before the update, or of the
    ``reference``, which stays the same."""
    before: str = "<answer>"
    """The text between the state and the gold answer, as the model would write it, white space included. Only the
    answer's tokens count."""


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
    decide: DecideSettings = DecideSettings()
    critic: TurnCriticSettings = TurnCriticSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
    roles: RolesSettings = RolesSettings()
    dense: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - pydantic copies it
    """Rewards of turns that come from the policies themselves, by name, each with its settings: ``implicit``
    (beta), ``information_gain`` (of), ``discriminator`` (form; its critic is a classifier, see the preset
    ``pair_rloo``), or one of your own (``register_dense``). All have ``weight`` (1.0) and ``clip`` (null: no limit).
    They are added to what the turns are paid before the estimator. New keys need a ``+``, as in
    ``+trainer.turn.dense.implicit.beta=0.05``."""
    probe: ProbeSettings = ProbeSettings()


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
    settings = read_knobs(name, known, _child(algorithm, "turn"), "algorithm.turn", of=name)
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


def read_knobs(name: str, known: Mapping[str, Any], values: Any, where: str, *, of: str = "", **more: Any) -> Any:
    """Return the knobs of a function, those that are set in ``values`` and the defaults of the others.

    Args:
        name: The function's name.
        known: Its knobs and their defaults.
        values: A mapping; None for none.
        where: The config key of ``values``, for messages.
        of: What ``where`` belongs to if the key alone does not say it.
        more: Further settings beside its knobs, each as pydantic takes it: a type and a default.
    """
    fields: Any = {knob: (_KINDS.get(type(default), type(default)), default) for knob, default in known.items()}
    return dict(create_model(name, __base__=_Knobs, **fields, **more).read(values, where, of))


def turn_reward_settings(reward: Any) -> TurnRewardSettings:
    """Read ``reward.turn`` from verl's ``reward`` node; ``outcome=auto`` is decided here, and nobody else sees it."""
    settings = TurnRewardSettings.read(_child(reward, "turn"), "reward.turn")
    if settings.outcome != "auto":
        return settings
    own = (_child(reward, "custom_reward_function") or {}).get("path")
    scored = own and own != JUDGED_BY
    return settings.model_copy(update={"outcome": "compute_score" if scored else "preset"})


def trainer_turn_settings(trainer: Any) -> TrainerTurnSettings:
    """Read ``trainer.turn`` from verl's ``trainer`` node."""
    return TrainerTurnSettings.read(_child(trainer, "turn"), "trainer.turn")


def run_turn_settings(config: Any) -> TrainerTurnSettings:
    """Read ``trainer.turn`` of verl's whole config; the defaults if it has no node ``trainer``."""
    return trainer_turn_settings(OmegaConf.select(config, "trainer") or {})


def _child(node: Any, key: str) -> Any:
    if isinstance(node, Mapping | DictConfig):
        found = node.get(key)
    else:
        found = getattr(node, key, None)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
