"""Credit a turn with its return-to-go: what is paid from this turn on.

Everything that follows a turn counts, and nothing that came before it, which its tokens could not change.
The estimators differ in the baseline that they subtract.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, read_batch
from verl_mtgrpo.credit.checks import check_choice, check_number
from verl_mtgrpo.credit.groups import (
    SCALES,
    divided,
    mean_of_others,
    minus_mean_of_others,
    normalize_within_group,
    std_within_group,
)
from verl_mtgrpo.credit.registry import register_estimator


@register_estimator(
    title="turn-level RLOO",
    words="What was paid from this turn on, minus the mean of the same over the other rollouts of the prompt that got "
    "as far (leave-one-out).",
)
def turn_rloo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    *,
    discount: float = 1.0,
    scale: str = "none",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute unbiased turn-level advantages: return-to-go minus the mean of the other rollouts at this turn.

    With turns k = 1..K_i and j over the *other* rollouts of the group that are alive at k (K_j ≥ k)::

        G_{i,k} = Σ_{l≥k} γ^{l-k} R_{i,l}
        A_{i,k} = G_{i,k} - mean_j G_{j,k}

    Why it is unbiased for every group size: the baseline of (i, k) is a function of the other rollouts
    and of "i is alive at k", which is decided before turn k is written. Given the history up to turn k, it
    is therefore independent of the turn's tokens, and multiplies a score of mean zero. (With γ < 1 it is
    unbiased for the discounted-return policy gradient without the γ^k factor, as is usual.)

    A rollout that is **alone at its turn** has no other rollout to be compared with there. Its baseline is
    the mean of the others' last-turn rewards R_{j,K_j}. These hold the outcome, which is most of what i can
    still earn, and depend on the others only, so the gradient stays unbiased; the raw return would have a
    larger variance. A rollout alone in its group keeps its raw return, as in verl's ``rloo``.

    ``scale="std"`` divides by the standard deviation of G_{·,k} over the rollouts alive at k (1 for one
    rollout). That is a function of i's own turn, so it is **not** unbiased: groups in which the turn made
    a large difference count less. It makes step sizes independent of the scale of the rewards.

    One turn and ``scale="none"``: verl's own ``rloo``. Source: leave-one-out of Kool et al. 2019 and
    Ahmadian et al., arXiv 2402.14740, applied per turn; the bias that it avoids is in verl RFC #7244.

    Args:
        token_level_rewards: ``(B, T)`` float; turn rewards anywhere inside their turn, the outcome in
            the last turn. Rewards outside every turn are ignored.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        discount: γ ≥ 0, per turn.
        scale: ``"none"`` or ``"std"``.
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0. Rows
        without a generated token get 0 and enter no mean.

    Raises:
        CreditInputError: shapes differ, rewards are not finite, the mask is not 0/1, or a setting is
            out of range.
    """
    check_number("discount", discount)
    check_number("epsilon", epsilon)
    check_choice("scale", scale, SCALES)
    batch = read_batch(token_level_rewards, response_mask, index)
    alive_BK = batch.turns.alive_BK
    return_BK = batch.return_to_go(discount)
    advantage_BK, alone_BK = minus_mean_of_others(return_BK, alive_BK, batch.groups)
    stand_in_B1 = mean_of_others(batch.outcome_B1, batch.nonempty_B1, batch.groups)
    advantage_BK = advantage_BK - stand_in_B1 * alone_BK
    if scale == "std":
        advantage_BK = divided(advantage_BK, std_within_group(return_BK, alive_BK, batch.groups) + epsilon)
    return batch.advantages(advantage_BK)


@register_estimator(
    title="GTPO",
    words="What was paid from this turn on, normalised over all turns of all rollouts of the prompt.",
    divides_by_group_std=True,
)
def gtpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    *,
    discount: float = 1.0,
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute GTPO's advantages: returns-to-go normalised over all turns of all rollouts of the group.

    ::

        G_{i,k} = Σ_{l≥k} γ^{l-k} R_{i,l}
        A_{i,k} = (G_{i,k} - mean G) / (std_{N-1} G + epsilon)    over every turn of the group

    All turns share one baseline: if rewards come late, early turns have larger returns than late ones
    whatever the policy did, and rollouts with many turns weigh more in the mean. With one turn it is
    verl's ``grpo``.

    Source: return and normalisation of arXiv 2511.14846, where γ = 0.9. The paper's format penalty and
    self-supervised shaping are rewards, not credit, and are not part of this function.

    Args, returns, errors: as :func:`turn_rloo`.
    """
    check_number("discount", discount)
    check_number("epsilon", epsilon)
    batch = read_batch(token_level_rewards, response_mask, index)
    alive_BK = batch.turns.alive_BK
    advantage_BK = normalize_within_group(
        batch.return_to_go(discount).reshape(-1, 1),
        alive_BK.reshape(-1, 1),
        batch.groups.of_turns(batch.turns.max_turns),
        scale="std",
        epsilon=epsilon,
    ).view_as(alive_BK)
    return batch.advantages(advantage_BK)


@register_estimator(
    title="turn-level REINFORCE++",
    words="What was paid from this turn on, normalised over all generated tokens of the training batch, whatever the "
    "prompt: it cannot be worked out from a group.",
    compares_rollouts=False,
)
def turn_reinforce_pp(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    *,
    discount: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compute REINFORCE++ advantages with a discount per turn instead of per token.

    With n_{i,k} the number of tokens of a turn and N = Σ n_{i,k}::

        G_{i,k} = Σ_{l≥k} γ^{l-k} R_{i,l}
        μ = Σ n_{i,k} G_{i,k} / N,   σ² = Σ n_{i,k} (G_{i,k} - μ)² / (N - 1)
        A_{i,k} = (G_{i,k} - μ) / √(σ² + 1e-8)                    over the generated tokens of the batch

    There are no groups: the baseline is over all prompts of the batch, weighted by length, and ``index``
    is not used. With γ = 1 and one turn it is verl's own ``reinforce_plus_plus``.

    Source: REINFORCE++, arXiv 2501.03262, as in verl 0.9 (``masked_whiten``); the discount per turn.

    Args, errors: as :func:`turn_rloo`.

    Returns:
        ``(advantages, returns)``, both ``(B, T)`` float32 and exactly 0 where the mask is 0; returns hold
        G_{i,k} on every token of turn k, as those of verl's ``reinforce_plus_plus`` do.
    """
    check_number("discount", discount)
    batch = read_batch(token_level_rewards, response_mask, index)
    return_BK = batch.return_to_go(discount)
    tokens_BK = batch.turns.tokens_BK.to(return_BK.dtype)
    total = tokens_BK.sum().clamp(min=1)
    # Subtract the minimum first, so that equal returns centre to exactly 0.
    generated_returns = return_BK.masked_fill(tokens_BK == 0, torch.inf).reshape(-1)
    low = torch.nn.functional.pad(generated_returns, (0, 1), value=torch.inf).amin()
    shifted_BK = return_BK - low
    centred_BK = (shifted_BK - (tokens_BK * shifted_BK).sum() / total).masked_fill(tokens_BK == 0, 0.0)
    variance = (tokens_BK * centred_BK.square()).sum() / (total - 1).clamp(min=1)
    advantage_BK = centred_BK * (variance + 1e-8).rsqrt()
    return batch.turns.spread(advantage_BK), batch.turns.spread(return_BK)
