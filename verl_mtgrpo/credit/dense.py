"""Reward turns from the policies themselves: functions of log-probs that are added to what the reward function pays.

Such a reward is *dense*: every turn gets one, and nobody has to label turns. A function here returns ``(B, K)``, one
number per turn; :func:`dense_rewards` weighs and clips it, and :func:`pay_last` puts it on the turn's last generated
token, where paid turn rewards lie too. Any estimator works on the sum.

``@register_dense`` above a function of your own adds it to the record, as ``@register_estimator`` does for estimators.
Each row is computed by itself, so micro-batches do not change anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.functional import softplus

from verl_mtgrpo.credit.checks import check_choice, check_finite, check_number
from verl_mtgrpo.credit.turns import Turns, segment_turns
from verl_mtgrpo.errors import ConfigError, CreditInputError

Function = Callable[..., Tensor]
F = TypeVar("F", bound=Function)

ANSWER = "answer_log_probs"
"""The field that costs a forward pass: the mean log-prob of the gold answer's tokens where each turn begins."""
_FIRST = "response_mask"


@dataclass(frozen=True)
class Dense:
    """One dense reward and the facts about it.

    Attributes:
        function: Takes ``response_mask``, then :attr:`fields`, then :attr:`knobs` by keyword, and returns ``(B, K)``.
        words: What it pays a turn for, in a sentence for somebody who looks at one turn.
    """

    function: Function
    words: str

    @property
    def name(self) -> str:
        """Return the name that it is registered under."""
        return self.function.__name__

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Return what it needs beyond the mask, such as ``ref_log_prob``."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]

    @cached_property
    def knobs(self) -> Mapping[str, Any]:
        """Return its settings and their defaults: the keyword-only parameters of the function."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


DENSE: dict[str, Dense] = {}
"""Every dense reward by its name."""


@overload
def register_dense(function: F, /) -> F: ...
@overload
def register_dense(*, words: str = ...) -> Callable[[F], F]: ...
def register_dense(function: F | None = None, /, *, words: str = "") -> F | Callable[[F], F]:
    """Add a dense reward to :data:`DENSE`, under the function's name; return the function unchanged.

    A decorator, with or without ``words`` (:attr:`Dense.words`)::

        from verl_mtgrpo.credit.dense import register_dense

        @register_dense
        def confidence(response_mask, old_log_probs, *, scale=0.1):
            return scale * segment_turns(response_mask).sum_over_turns(old_log_probs)

    Args:
        function: Called with the mask ``(B, T)``, then the fields that it names as further positional parameters, and,
            by keyword, its knobs, each of which has a default. Returns ``(B, K)``, one number per turn.
        words: :attr:`Dense.words`.

    Registering a function of the same module and name again, as a reload does, replaces it.

    Raises:
        ConfigError: the first parameter is not ``response_mask``, a knob is called ``weight`` or ``clip``, which every
            dense reward has, or the name is taken.
    """

    def register(function: F) -> F:
        record = Dense(function, words)
        _refuse_odd(record)
        DENSE[record.name] = record
        return function

    return register if function is None else register(function)


def _refuse_odd(record: Dense) -> None:
    parameters, name = tuple(inspect.signature(record.function).parameters), record.name
    if parameters[:1] != (_FIRST,):
        raise ConfigError(
            f"the dense reward {name} takes {parameters}", expected=f"{_FIRST} first, then fields, then knobs"
        )
    if taken := {"weight", "clip"} & set(record.knobs):
        raise ConfigError(f"the dense reward {name} has a knob {sorted(taken)[0]}, which all have", fix="rename it")
    known = DENSE.get(name)
    if known is not None and known.function.__module__ != record.function.__module__:
        raise ConfigError(f"there is a dense reward {name} already", fix="rename the function")


def dense_rewards(
    record: Dense, response_mask: Tensor, fields: Mapping[str, Any], *, weight: float = 1.0, clip: float | None = None,
    **knobs: Any,
) -> Tensor:  # fmt: skip
    """Return what one dense reward adds to each turn, weight · min(max(r_{i,k}, -clip), clip): ``(B, K)`` float32.

    Args:
        record: The dense reward.
        response_mask: ``(B, T)``, 1 at generated tokens.
        fields: At least those of :attr:`Dense.fields`, by name.
        weight: What the reward is multiplied with, after it was clipped.
        clip: The largest magnitude of one turn's reward; None for no limit.
        knobs: Those of the function.

    Raises:
        CreditInputError: the weight or limit is out of range, or the function returned something other than a finite
            number per turn.
    """
    check_finite("weight", weight)
    if clip is not None:
        check_number("clip", clip)
    turns = segment_turns(response_mask)
    reward_BK = record.function(response_mask, **{name: fields[name] for name in record.fields}, **knobs)
    if reward_BK.shape != turns.alive_BK.shape:
        raise CreditInputError(
            f"the dense reward {record.name} has shape {tuple(reward_BK.shape)}",
            expected=f"{tuple(turns.alive_BK.shape)}: a number for each turn of each rollout",
        )
    reward_BK = reward_BK.detach().float().masked_fill(~turns.alive_BK, 0.0)
    bad = int((~torch.isfinite(reward_BK)).any(dim=1).sum())
    if bad:
        raise CreditInputError(
            f"the dense reward {record.name} is NaN or infinite in {bad} of {len(reward_BK)} rollouts",
            fix="check the log-probs that it is computed from: one of the policies may have diverged",
        )
    limited_BK = reward_BK if clip is None else reward_BK.clamp(-clip, clip)
    return weight * limited_BK


def pay_last(turns: Turns, reward_BK: Tensor) -> Tensor:
    """Put each turn's reward on its last generated token: ``(B, T)``, 0 elsewhere."""
    rows, columns = turns.alive_BK.nonzero(as_tuple=True)
    last_BK = turns.first_BK + turns.tokens_BK - 1
    tokens_BT = reward_BK.new_zeros(len(turns.count_B), turns.response_length)
    tokens_BT[rows, last_BK[rows, columns]] = reward_BK[rows, columns]
    return tokens_BT


@register_dense(words="what the policy has come to write more readily than the reference, as log π/π_ref over the turn")
def implicit(response_mask: Tensor, old_log_probs: Tensor, ref_log_prob: Tensor, *, beta: float = 0.05) -> Tensor:
    """Return the implicit reward of each turn.

    r_{i,k} = β Σ_{t in turn k} [log π_old(y_t) - log π_ref(y_t)].

    The reward under which π is the optimal policy with KL coefficient β, up to a term of the prompt (Rafailov et al.,
    arXiv 2305.18290, equation 5), split over the turns. It is 0 while the policy is the reference, so by itself it only
    pays the policy for going on as it does: the reference has to be an earlier policy, or the policy has to be trained
    on outcomes or pairs (:func:`~verl_mtgrpo.credit.pairs.pair_dpo`) as well. With β = -c it is a KL penalty in the
    reward with coefficient c, summed per turn.

    Args:
        response_mask: ``(B, T)``, 1 at generated tokens.
        old_log_probs: ``(B, T)``, log π_old of each token, before the update.
        ref_log_prob: ``(B, T)``, log π_ref of each token.
        beta: β; negative for a penalty.
    """
    check_finite("beta", beta)
    for name, one in (("old_log_probs", old_log_probs), ("ref_log_prob", ref_log_prob)):
        if one.shape != response_mask.shape:
            raise CreditInputError(
                f"{name} has shape {tuple(one.shape)} and response_mask {tuple(response_mask.shape)}",
                expected="one number per response token",
            )
    log_ratio_BT = old_log_probs.float() - ref_log_prob.float()
    return beta * segment_turns(response_mask).sum_over_turns(log_ratio_BT)


@register_dense(words="how much likelier the gold answer became from where this turn begins to where the next one does")
def information_gain(response_mask: Tensor, answer_log_probs: Tensor, *, of: str = "probability") -> Tensor:
    """Return how much likelier the gold answer became through each turn and its tool results (IGPO).

    r_{i,k} = p_{i,k+1} - p_{i,k} for k < K_i, and 0 at the last turn, which the outcome reward is for. p_{i,k} is the
    likelihood of the gold answer g where turn k begins, h_k: the geometric mean over its tokens,
    exp(1/|g| Σ_j log π(g_j | h_k, g_<j)), or its logarithm. The rewards of a rollout sum up to p_{i,K_i} - p_{i,1}.

    Source: IGPO (arXiv 2510.14967; GuoqingWang1/IGPO @bff163b, scrl/llm_agent/generation.py, ``probability``).

    Args:
        response_mask: ``(B, T)``, 1 at generated tokens.
        answer_log_probs: ``(B, K)``, 1/|g| Σ_j log π(g_j | h_k, g_<j). What stands where there is no turn is ignored.
        of: ``probability``: differences of probabilities, from -1 to 1; ``log_probability``: of their logarithms, in
            nats, which has no bound: set a clip.
    """
    check_choice("of", of, ("probability", "log_probability"))
    turns = segment_turns(response_mask)
    if answer_log_probs.shape != turns.alive_BK.shape:
        raise CreditInputError(
            f"{ANSWER} has shape {tuple(answer_log_probs.shape)}",
            expected=f"{tuple(turns.alive_BK.shape)}: a number for each turn of each rollout",
        )
    likely_BK = answer_log_probs.float().exp() if of == "probability" else answer_log_probs.float()
    before_last_BK = turns.alive_BK & ~turns.last_BK
    return (likely_BK.roll(-1, dims=1) - likely_BK).where(before_last_BK, 0.0)


@register_dense(words="how much the discriminator takes this turn for an expert's")
def discriminator(response_mask: Tensor, values_after: Tensor, *, form: str = "gail") -> Tensor:
    """Return what each turn is worth to a policy that is to be taken for the expert.

    With D(state, turn) = σ(logit), the probability that the turn is an expert's (:mod:`.discriminator`)::

        gail        -log(1 - D)            from 0 up
        log         log D                  from 0 down
        log_odds    log D - log(1 - D)     the logit itself, no bound: set a clip

    Source: GAIL (arXiv 1606.03476), whose cost of the policy's own action is minus the first one; ``log_odds`` is
    AIRL's (arXiv 1710.11248). D is that of before its update.

    Args:
        response_mask: ``(B, T)``, 1 at generated tokens.
        values_after: ``(B, T)``, the logit after each response token, which the critic's workers compute.
        form: ``gail``, ``log`` or ``log_odds``.
    """
    check_choice("form", form, ("gail", "log", "log_odds"))
    turns = segment_turns(response_mask)
    logit_BK = turns.at_last(values_after.float())
    reward_BK = {"gail": softplus(logit_BK), "log": -softplus(-logit_BK), "log_odds": logit_BK}[form]
    return reward_BK.where(turns.alive_BK, 0.0)
