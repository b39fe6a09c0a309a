"""Find settings of verl that a run with our parts does not read, or that do not do here what their name says.

Each is a warning: the run works as if they were not set, which is probably not what the user meant.
"""

from __future__ import annotations

from collections.abc import Iterator

from verl.trainer.ppo.core_algos import AdvantageEstimator

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.parts import LOOPS, pays_turns
from verl_mtgrpo.integration.settings import TurnCriticSettings, trainer_turn_settings, turn_reward_settings
from verl_mtgrpo.rewards.pattern import TURN_PATTERN

READS = {"gamma": ("gae", "reinforce_plus_plus"), "lam": ("gae",)}
"""Keys of ``algorithm`` -> verl's estimators that read them (verl 0.9.1, trainer/ppo/core_algos.py)."""
VALUE_CLIP = 0.5
"""verl's default of ``critic.cliprange_value``."""
WIDE_CLIP = 0.01
"""A clip range of this size or more is meant for ratios of tokens: the geometric mean of a turn's ratios hardly ever
moves that far, unless turns have only a few tokens. GSPO's paper (arXiv 2507.18071) clips at 3e-4 and 4e-4."""


def unused(setup: Setup) -> Iterator[Finding]:
    """Yield a warning for each such setting."""
    try:
        turn_reward_settings(setup.get("reward"))
        trainer_turn_settings(setup.get("trainer"))
    except ConfigError:
        return  # another check reports it
    for look in (
        _discounts,
        _pf_ppo,
        _filter_metric,
        _filter_batches,
        _reward_settings,
        _data_source,
        _loop,
        _clip,
        _critic,
    ):
        for message, fix in look(setup):
            yield Finding("unused", "warn", message, fix)


def _discounts(setup: Setup) -> Iterator[tuple[str, str]]:
    name = str(setup.get("algorithm.adv_estimator"))
    if name not in ESTIMATORS and name not in list(AdvantageEstimator):
        return  # an estimator registered with verl gets the whole config and may read it
    if name in ESTIMATORS and "values" in ESTIMATORS[name].fields:
        return  # the check estimator refuses it
    for key, readers in READS.items():
        value = setup.get(f"algorithm.{key}")
        if value is None or float(value) == 1.0 or name in readers:
            continue
        yield f"algorithm.{key}={value} is not read by {name}, so it discounts nothing", _instead(name, key)


def _instead(name: str, key: str) -> str:
    leave = f"leave algorithm.{key} at 1.0"
    if key == "gamma" and name in ESTIMATORS and "discount" in ESTIMATORS[name].knobs:
        return f"set algorithm.turn.discount, which counts turns, and {leave}"
    if key == "lam":
        return f"{leave}: lambda is for estimators with a critic (mt_ppo; turn_gae and bilevel_gae: algorithm.turn.lam)"
    return f"{leave}, or choose an estimator with algorithm.turn.discount (mt_grpo, turn_rloo, gtpo)"


def _pf_ppo(setup: Setup) -> Iterator[tuple[str, str]]:
    name = setup.get("algorithm.adv_estimator")
    if setup.get("algorithm.use_pf_ppo") and name != "gae":
        message = f"algorithm.use_pf_ppo=True does nothing with {name}: verl resamples rollouts for its own gae only"
        yield message, "leave it False, or set algorithm.adv_estimator=gae (+mtgrpo=mt_ppo)"


def _filter_metric(setup: Setup) -> Iterator[tuple[str, str]]:
    """Warn if verl filters groups by totals although each turn is paid."""
    if not setup.get("algorithm.filter_groups.enable") or setup.get("algorithm.filter_groups.metric") != "reward":
        return
    name = setup.get("algorithm.adv_estimator")
    if not pays_turns(setup.config) or not (name in ESTIMATORS or name == "gae"):
        return  # verl's other estimators compare totals themselves
    if turn_reward_settings(setup.get("reward")).pay != "turns":
        return  # everything is paid at the end, so equal totals are equal rewards
    message = (
        "algorithm.filter_groups.metric=reward removes groups whose rollouts earned the same in total, though turns "
        f"differ, as in (0.7, 0.5) and (0.2, 1.0): {name} would learn from them"
    )
    yield message, f"set algorithm.filter_groups.metric={TURN_PATTERN}"


def _filter_batches(setup: Setup) -> Iterator[tuple[str, str]]:
    # verl warns of this as well, but only with its own replay buffer.
    most = setup.get("algorithm.filter_groups.max_num_gen_batches")
    if setup.get("algorithm.filter_groups.enable") and most:
        message = f"algorithm.filter_groups.max_num_gen_batches={most} is not read by verl 0.9's replay buffers"
        yield message, "set algorithm.filter_groups.max_inflight_gen_batches, which limits the batches in flight"


def _reward_settings(setup: Setup) -> Iterator[tuple[str, str]]:
    """Warn of settings that verl's reward managers read and ours does not."""
    if not pays_turns(setup.config):
        return
    given = dict(setup.get("reward.reward_kwargs") or setup.get("reward_model.reward_kwargs") or {})
    overlong = given.pop("overlong_buffer_cfg", None)
    given.pop("max_resp_len", None)  # a part of the overlong penalty
    if overlong and overlong.get("enable"):
        message = (
            "reward.reward_kwargs.overlong_buffer_cfg is read by verl's reward manager dapo only: mtgrpo pays no "
            "penalty for long responses"
        )
        fix = (
            "subtract it in a custom reward function (reward.turn.preset=file.py:fn), which has the length of "
            "every turn in Turn.span, and remove it here"
        )
        yield message, fix
    if given:
        message = f"reward.reward_kwargs ({', '.join(map(str, given))}) is read by verl's reward manager dapo only"
        yield message, "remove it; the settings of mtgrpo are under reward.turn"
    if turn_reward_settings(setup.get("reward")).outcome == "compute_score":
        return
    if setup.get("reward.sandbox_fusion.url") or setup.get("sandbox_fusion.url"):
        message = "reward.sandbox_fusion is used by verl's compute_score, which this run does not call"
        yield message, "set reward.turn.outcome=compute_score, or remove it"


def _data_source(setup: Setup) -> Iterator[tuple[str, str]]:
    key = setup.get("data.reward_fn_key")
    if key not in (None, "data_source"):
        message = f"data.reward_fn_key={key} is not read by the reward managers of verl 0.9, nor by mtgrpo"
        yield message, "name the column data_source in the parquet files, and remove the key"


def _loop(setup: Setup) -> Iterator[tuple[str, str]]:
    if setup.get(f"{ROLLOUT}.agent.default_agent_loop") not in LOOPS:
        return
    for key, default in (("use_inference_chat_template", False), ("tokenization_sanity_check_mode", "strict")):
        value = setup.get(f"{MULTI_TURN}.{key}")
        if value not in (None, default):
            message = f"{MULTI_TURN}.{key}={value} is not read by agent loops: turns are continued as tokens, never "
            yield f"{message}rendered again", f"leave it at {default}"


def _clip(setup: Setup) -> Iterator[tuple[str, str]]:
    """Warn of a clip range meant for tokens if ratios of turns are clipped."""
    actor = "actor_rollout_ref.actor"
    if setup.get(f"{actor}.policy_loss.loss_mode") != "turn_gspo":
        return
    both = setup.get(f"{actor}.clip_ratio")
    bounds = {side: setup.get(f"{actor}.clip_ratio_{side}") for side in ("low", "high")}
    wide = {side: both if bound is None else bound for side, bound in bounds.items()}
    wide = {side: bound for side, bound in wide.items() if bound is not None and float(bound) >= WIDE_CLIP}
    if wide:
        said = " and ".join(f"clip_ratio_{side} is {bound}" for side, bound in wide.items())
        message = (
            f"{said}, and turn_gspo compares the geometric mean of a turn's ratios with it, which hardly ever moves "
            "that far, so nothing is clipped"
        )
        fix = (
            f"set {actor}.clip_ratio_low=3e-4 and {actor}.clip_ratio_high=4e-4 (GSPO's paper; verl reads clip_ratio "
            "only where these two are null)"
        )
        yield message, fix


def _critic(setup: Setup) -> Iterator[tuple[str, str]]:
    """Warn of settings of a critic of states and turns without one, and of those of verl's critic that it ignores."""
    name = str(setup.get("algorithm.adv_estimator"))
    classifies = "discriminator" in (setup.get("trainer.turn.dense") or {})
    if classifies or (name in ESTIMATORS and "values_after" in ESTIMATORS[name].fields):
        clip = setup.get("critic.cliprange_value")
        if clip is not None and clip != VALUE_CLIP:
            message = f"critic.cliprange_value={clip} is not read: the loss of {name}'s critic clips nothing"
            yield message, f"leave it at {VALUE_CLIP}"
        yield from _memory(setup)
        return
    told = trainer_turn_settings(setup.get("trainer")).critic
    changed = [key for key, value in told if value != getattr(TurnCriticSettings(), key)]
    if changed:
        yield (
            f"trainer.turn.critic.{changed[0]} does nothing with {name}, which does not learn the values of turns",
            "choose +mtgrpo=turn_td or +mtgrpo=archer, or leave it out",
        )


def _memory(setup: Setup) -> Iterator[tuple[str, str]]:
    """Warn of a memory of the critic from which nothing is ever drawn, and of its settings without one."""
    key, settings = "trainer.turn.critic", trainer_turn_settings(setup.get("trainer")).critic
    if not settings.memory:
        changed = [one for one in ("max_age", "replay") if getattr(settings, one) != getattr(TurnCriticSettings(), one)]
        if changed:
            yield f"{key}.{changed[0]} is not read with {key}.memory=0", f"set {key}.memory, or leave it out"
        return
    of_prompt = setup.get("actor_rollout_ref.rollout.n")
    prompts, mini = setup.get("data.train_batch_size"), setup.get("critic.ppo_mini_batch_size")
    if not (of_prompt and prompts and mini):
        return
    own, rows = prompts * of_prompt, mini * of_prompt
    if not settings.replayed(own, settings.memory, rows):
        most = min(settings.replay * own, settings.memory)
        message = f"{key}: at most {most:g} earlier rollouts per round (memory={settings.memory}, replay="
        message += f"{settings.replay:g}), fewer than a mini-batch of {rows}, so none is ever learned again"
        yield message, f"raise {key}.memory and {key}.replay, or lower critic.ppo_mini_batch_size"
