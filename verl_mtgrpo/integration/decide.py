"""What a run with ``mtgrpo_decide_agent`` needs beyond the loop: rows that ask for decisions, and an update that fits.

The rollouts of a decider are not samples of the policy. What a run trains on has to be corrected for that, or refused::

    posterior           the log weight of each decision is added to the log-prob of its turn's last token, so that the
                        sum over a row is the log-prob of what decided. verl's own weight of a whole rollout
                        (algorithm.rollout_correction.rollout_is=sequence) is then exact: Π 1 / (k · w).
    retry, train        nothing to correct: a rejected attempt is a turn, and the feedback is what followed it.
    retry, mask         allowed and not corrected: learned from are only the attempts that were good enough.
    best, your own      refused in training: what a decider never takes has no weight that could stand for it.
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.deciders import JUDGE, KEY, OF_SEVERAL, no_decider
from verl_mtgrpo.deciders.settings import DecideSettings
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.agent_names import instead_of
from verl_mtgrpo.integration.settings import run_turn_settings, turn_reward_settings

DECIDE, RAW_DECIDE = "mtgrpo_decide_agent", "mtgrpo_raw_decide_agent"
DECIDE_LOOPS = (DECIDE, RAW_DECIDE)
"""Our agent loops whose turns are decided."""
_DECIDING = {"mtgrpo_tool_agent": DECIDE, "mtgrpo_raw_agent": RAW_DECIDE}
ASKS = "mtgrpo_decides"
"""Column of a row that asks for decisions: ``training``, ``validation``, or empty for none."""

_ROLLOUT = "actor_rollout_ref.rollout"
_LOOP, _MANAGER = f"{_ROLLOUT}.agent.default_agent_loop", f"{_ROLLOUT}.agent.agent_loop_manager_class"
_CORRECTION = "algorithm.rollout_correction"


def decide_settings(config: Any) -> DecideSettings:
    """Read ``trainer.turn.decide`` of verl's whole config."""
    return run_turn_settings(config).decide


def ask_for_decisions(prompts: Any, config: Any, validating: bool) -> None:
    """Make prompts ask for decisions, in place, where the settings say so.

    Args:
        prompts: verl's TensorDict of prompts.
        config: verl's whole config.
        validating: True for rows of a validation.
    """
    from verl.utils.tensordict_utils import assign_non_tensor_data

    settings, when = decide_settings(config), "validation" if validating else "training"
    if settings.by != "none":
        assign_non_tensor_data(prompts, ASKS, when if settings.when in ("always", when) else "")


def check_decide(config: Any) -> None:
    """Raise ``ConfigError`` if turns are to be decided and a part is missing, or the update would be a wrong one.

    Args:
        config: verl's whole config.
    """
    select, settings = OmegaConf.select, decide_settings(config)
    if settings.by == "none":
        return
    loop = select(config, _LOOP)
    if loop not in DECIDE_LOOPS:
        raise ConfigError(
            f"{KEY}.by={settings.by}, but {_LOOP}={loop} decides no turns",
            fix=instead_of(str(loop), _DECIDING, f"{KEY}.by=none"),
        )
    if select(config, _MANAGER) is None:
        raise ConfigError(
            f"{loop} decides turns of rows that the manager of the rollout workers marks, but {_MANAGER} is not set",
            fix="set it to verl_mtgrpo.integration.rollout.workers.TurnAgentLoopManager, as the groups +mtgrpo=... do",
        )
    _check_scorer(config, settings)
    if settings.when != "training":
        _check_validation(config, settings)
    if settings.when != "validation" and not select(config, "trainer.val_only"):
        _check_training(config, settings)


def _check_scorer(config: Any, settings: DecideSettings) -> None:
    own = ":" in settings.by
    if not own and settings.by not in (*OF_SEVERAL, "retry"):
        raise no_decider(settings.by)
    needs = settings.by in OF_SEVERAL or (settings.by == "retry" and settings.threshold is not None)
    if needs and not settings.score:
        raise ConfigError(
            f"{KEY}.by={settings.by} compares scores of turns, but {KEY}.score is empty",
            fix=f"set it to {JUDGE}, or to a function of your own, package.module:fn or path/to/file.py:fn",
        )
    if settings.score and settings.score != JUDGE and ":" not in settings.score:
        raise ConfigError(
            f"{KEY}.score is {settings.score!r}",
            expected=f"{JUDGE}, or a function of your own as package.module:fn or path/to/file.py:fn",
        )
    judge = turn_reward_settings(config.reward).judge
    if settings.score == JUDGE and not (judge.base_url and judge.model):
        raise ConfigError(
            f"{KEY}.score={JUDGE} needs reward.turn.judge.base_url (an OpenAI-compatible endpoint) and "
            "reward.turn.judge.model",
            fix="set both; a judge that verl serves itself cannot be asked by agent loops",
        )
    try:
        settings.feedback.format(score=0.0, threshold=0.0)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{KEY}.feedback is {settings.feedback!r}: {type(error).__name__}: {error}",
            expected="a text in which {score} and {threshold} may stand; other braces doubled",
        ) from error


def _check_validation(config: Any, settings: DecideSettings) -> None:
    temperature = OmegaConf.select(config, f"{_ROLLOUT}.val_kwargs.temperature")
    if settings.by in OF_SEVERAL and settings.candidates > 1 and not temperature:
        raise ConfigError(
            f"{KEY}.by={settings.by} chooses among {settings.candidates} samples, but in a validation with "
            f"{_ROLLOUT}.val_kwargs.temperature={temperature} all of them are the same",
            fix=f"set {_ROLLOUT}.val_kwargs.temperature=1.0 and do_sample=True there"
            + ("" if settings.by == "best" else f", or {KEY}.when=training"),  # which refuses best
        )


def _check_training(config: Any, settings: DecideSettings) -> None:
    select = OmegaConf.select
    several = settings.candidates > 1
    if ":" in settings.by or (settings.by == "best" and several):
        raise ConfigError(
            f"{KEY}.by={settings.by} in training: some turns of the policy are never taken, and no weight of those "
            "that are can correct the update for them",
            fix=f"set {KEY}.when=validation, or {KEY}.by=posterior, which can be corrected",
        )
    if settings.by != "posterior" or not several:
        return
    level, bypassed = select(config, f"{_CORRECTION}.rollout_is"), select(config, f"{_CORRECTION}.bypass_mode")
    if level != "sequence" or bypassed:
        raise ConfigError(
            f"{KEY}.by=posterior in training takes turns more or less often than the policy writes them, and "
            f"{_CORRECTION}.rollout_is={level}, bypass_mode={bypassed} does not correct for it",
            fix=f"set {_CORRECTION}.rollout_is=sequence, or {KEY}.when=validation",
        )
    if not select(config, f"{_ROLLOUT}.calculate_log_probs"):
        raise ConfigError(
            f"{KEY}.by=posterior in training records what it decided in the log-probs of the rollout, but "
            f"{_ROLLOUT}.calculate_log_probs=False",
            fix="set it to True",
        )
