"""Credit turns with a critic that knows both states and turns: V where a turn begins, Q where it ends.

**One head, two meanings.** A critic gives one number per place of a row, and a place is how many response tokens were
read before it, 0..T. At the place where turn k begins, nothing of the turn has been read: the number is V_k, the value
of the state. At the place right after the turn's last token, the whole turn has been read and its result has not: the
number is Q_k, the value of taking that turn in that state. No place is both, because an observation token lies between
a turn and the next one. So one network holds V and Q, and they never compete for an output.

**Where it learns.** Only at these places (:func:`value_targets`). A token in the middle of a turn has no target.

**What it learns.** One-step temporal differences at turn level, from values that stay fixed while it learns::

    Q_k ← R_k + γ V_{k+1}          0 after the last turn
    V_k ← Q_k                      where the turn is one that the policy of today wrote

The second line needs the turn to be a sample of today's policy, the first does not. So rows of earlier steps may be
replayed for Q alone: their states and turns are old, the values that follow them are today's.

Source: ArCHer, arXiv 2402.19446, archer/algorithms/archer/trainer.py of YifeiZhou02/ArCHer@7c771a7, whose critic has
two heads for Q and two for V, slow copies of them as targets, and an encoder of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, TurnBatch, read_batch
from verl_mtgrpo.credit.checks import check_number, refusal
from verl_mtgrpo.credit.critic import whitened
from verl_mtgrpo.credit.registry import register_estimator
from verl_mtgrpo.errors import CreditInputError


@register_estimator(
    title="turn-level TD",
    words="The critic's value after the turn, Q, minus its value where the turn began, V. What was paid enters through "
    "the critic's targets only. With whiten=True it is whitened over the turns of the batch, so that it cannot be "
    "worked out from a group.",
)
def turn_td(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    values: Tensor,
    values_after: Tensor,
    *,
    discount: float = 1.0,
    whiten: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute A_k = Q_k - V_k: how much better the critic thinks the turn is than the state it was written in.

    With turns k = 1..K_i, V_{i,k} the value before turn k's first token and Q_{i,k} the value after its last::

        A_{i,k} = Q_{i,k} - V_{i,k}          the same at all tokens of the turn

    The rewards are in it only as far as the critic has learned them (:func:`value_targets`): a critic that knows
    nothing gives no credit, and its mistakes are the policy's. In return one rollout per prompt is enough, and what a
    turn led to does not have to be sampled again for each estimate. Train the critic alone for some steps first.

    A critic whose Q is exactly its target, Q_k = R_k + γ V_{k+1}: ``turn_gae`` with λ = 0. Exact values:
    the advantage of the turn itself, without the noise of what came after it.

    Source: the actor's advantage in ArCHer, arXiv 2402.19446, section 3.3; there it is the smaller of two Q minus the
    smaller of two V, and is not whitened.

    Args:
        token_level_rewards: ``(B, T)`` float; turn rewards anywhere inside their turn, the outcome in the last turn.
            Checked here, and used by :func:`value_targets`.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``); not used, because the critic is the baseline.
        values: ``(B, T)`` float, ``values[t]`` of the history before token t, as verl has them.
        values_after: ``(B, T)`` float, ``values_after[t]`` of the history up to token t and with it. It equals
            ``values[t + 1]``, except at a row's last token, whose value verl cuts off.
        discount: γ ≥ 0, per turn, in the targets of the critic.
        whiten: Give the advantages mean 0 and standard deviation 1 over the turns of the batch, as ``turn_gae`` does.

    Returns:
        ``(advantages, returns)``, both ``(B, T)`` float32 and exactly 0 where the mask is 0; returns hold Q_k, which
        is what V_k learns, at every token of turn k.

    Raises:
        CreditInputError: shapes differ, rewards or values are not finite, the mask is not 0/1, or γ is out of range.
    """
    check_number("discount", discount)
    batch = read_batch(token_level_rewards, response_mask, index, values, values_after)
    v_BK, q_BK = values_of_turns(batch, values, values_after)
    advantage_BK = q_BK - v_BK
    if whiten:
        advantage_BK = whitened(advantage_BK, batch.turns.alive_BK)
    return batch.turns.spread(advantage_BK), batch.turns.spread(q_BK)


def values_of_turns(batch: TurnBatch, values: Tensor, values_after: Tensor) -> tuple[Tensor, Tensor]:
    """Return V_k and Q_k, ``(B, K)`` float32 each, 0 where there is no turn."""
    return batch.turns.at_first(values.detach().float()), batch.turns.at_last(values_after.detach().float())


def td_targets(reward_BK: Tensor, v_next_BK: Tensor, done_BK: Tensor, gamma: float) -> Tensor:
    """Return what Q learns: R_k + γ V_{k+1}, and R_k where the episode ends with the turn.

    Source: ArCHer, arXiv 2402.19446, eq. 3.

    Args:
        reward_BK: ``(B, K)`` float, R_k of each turn.
        v_next_BK: ``(B, K)`` float, the value of the state that the turn led to. Ignored where the episode ended, NaN
            included.
        done_BK: ``(B, K)`` bool, True where no turn follows.
        gamma: γ ≥ 0, per turn.
    """
    return reward_BK + gamma * v_next_BK.masked_fill(done_BK, 0.0)


def value_targets(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    values: Tensor,
    values_after: Tensor,
    *,
    discount: float = 1.0,
    fresh_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what the critic learns at each place of each row, and where it learns at all.

    A place p is where p response tokens have been read. With b_k and e_k the first and last token of turn k::

        target at place e_k + 1  =  R_k + γ V_{k+1}          Q_k, of every row
        target at place b_k      =  Q_k                      V_k, of rows that today's policy wrote

    V's target is the critic's own Q of the turn that was written, before the update.

    Args:
        token_level_rewards: ``(B, T)`` float, as for :func:`turn_td`.
        response_mask: ``(B, T)``, 1 at generated tokens.
        values: ``(B, T)`` float, as for :func:`turn_td`, of the critic before the update.
        values_after: ``(B, T)`` float, as for :func:`turn_td`.
        discount: γ ≥ 0, per turn.
        fresh_B: ``(B,)`` bool, True for rows that today's policy wrote; None: all of them.

    Returns:
        ``(targets, learned)``, both ``(B, T + 1)``: float32, 0 where nothing is learned, and bool.

    Raises:
        CreditInputError: as :func:`turn_td`.
    """
    check_number("discount", discount)
    rows, length = response_mask.shape
    batch = read_batch(token_level_rewards, response_mask, torch.arange(rows), values, values_after)
    v_BK, q_BK = values_of_turns(batch, values, values_after)
    alive_BK, begins_BK = batch.turns.alive_BK, batch.turns.first_BK
    written_BK = alive_BK if fresh_B is None else alive_BK & fresh_B.bool()[:, None]
    targets = q_BK.new_zeros(rows, length + 1)
    learned = torch.zeros_like(targets, dtype=torch.bool)
    for place_BK, target_BK, which_BK in (
        (begins_BK + batch.turns.tokens_BK, _q_targets(batch, v_BK, discount), alive_BK),
        (begins_BK, q_BK, written_BK),
    ):
        row, turn = which_BK.nonzero(as_tuple=True)
        at = row, place_BK[row, turn]
        targets[at], learned[at] = target_BK[row, turn], True
    return targets, learned


def critic_quality(
    token_level_rewards: Tensor, response_mask: Tensor, values: Tensor, values_after: Tensor, *, discount: float = 1.0
) -> dict[str, float]:
    """Measure how well a critic knows states and turns, from rollouts of today's policy.

    ``critic/td_error``: √mean (R_k + γ V_{k+1} - Q_k)² over the turns, the distance of Q from its targets.
    ``critic/v_explained_variance`` and ``critic/q_explained_variance``: 1 - Var(G_k - V_k) / Var(G_k), the same of Q_k,
    over the turns, with G_k = Σ_{l≥k} γ^{l-k} R_l what the turn and those after it earned. They do not compare the
    critic with its own targets: a critic that agrees with itself and with nothing else explains nothing. Q of a last
    turn is about rewards that this very turn earned, so a critic can know them all; V cannot.

    Args, errors: as :func:`value_targets`.

    Returns:
        The numbers by name. Those that are not defined, such as a share of no variance, are left out.
    """
    batch = read_batch(token_level_rewards, response_mask, torch.arange(len(response_mask)), values, values_after)
    v_BK, q_BK = values_of_turns(batch, values, values_after)
    alive_BK = batch.turns.alive_BK
    wanted = _q_targets(batch, v_BK, discount)[alive_BK].double()
    earned, v, q = (one[alive_BK].double() for one in (batch.return_to_go(discount), v_BK, q_BK))
    named = {"critic/td_error": float((wanted - q).square().mean().sqrt())} if len(q) else {}
    if len(q) > 1 and float(earned.var()) > 0.0:
        named |= {
            f"critic/{name}_explained_variance": 1.0 - float((earned - value).var() / earned.var())
            for name, value in (("v", v), ("q", q))
        }
    return named


def _q_targets(batch: TurnBatch, v_BK: Tensor, discount: float) -> Tensor:
    v_next_BK = torch.nn.functional.pad(v_BK[:, 1:], (0, 1)) if v_BK.shape[1] else v_BK
    return td_targets(batch.reward_BK, v_next_BK, batch.turns.last_BK, discount)


def conservative(q_all: Tensor, q_taken: Tensor) -> Tensor:
    """Return the penalty log Σ_a exp Q(s, a) - Q(s, taken), which keeps Q of untried turns from being overrated.

    At least 0 if the turn taken is one of the proposals, and 0 if it is the only one. Added to the squared TD error of
    a critic that learns from turns which another policy wrote.

    Source: CQL, Kumar et al., arXiv 2006.04779, eq. 4, over proposals of a prior instead of all actions, as in "LLM
    action priors", arXiv 2410.07927, value-based/CQL_overcook_salad.py of yanxue7/RL-LLM-Prior@13b99c9.

    Args:
        q_all: ``(..., k)`` float, Q of the proposals in one state; -inf for one that does not exist.
        q_taken: ``(...)`` float, Q of the turn that was taken.

    Raises:
        CreditInputError: the shapes do not fit, or there is no proposal.
    """
    _check_proposals("q_all", q_all)
    if q_taken.shape != q_all.shape[:-1]:
        raise CreditInputError(
            f"q_taken has shape {tuple(q_taken.shape)} and q_all {tuple(q_all.shape)}",
            expected="one turn taken for each row of proposals",
        )
    return q_all.logsumexp(dim=-1) - q_taken


def posterior(q_k: Tensor, alpha: float) -> Tensor:
    """Return with which probability each of k proposed turns is taken: softmax(Q / α).

    Proposals that are samples of the policy π make this the policy π(a) exp(Q(a) / α) / Z, seen through k samples. One
    proposal: it is taken. α → 0: the one of the highest Q; α → ∞: any of them, which is sampling from π.

    Source: "LLM action priors", arXiv 2410.07927, section 3.2; 1/α is ``alpha`` in its code.

    Args:
        q_k: ``(..., k)`` float, Q of each proposal; -inf for one that does not exist.
        alpha: α > 0, in units of reward; inf is allowed.

    Raises:
        CreditInputError: there is no proposal, a Q is NaN or +inf, or α is not above 0.
    """
    _check_proposals("q_k", q_k)
    if not alpha > 0:
        raise refusal("alpha", f"alpha is {alpha}", expected="a number above 0")
    above = q_k - q_k.amax(dim=-1, keepdim=True)  # before the division, so that a small α does not overflow
    return torch.where(above == -torch.inf, above, above / alpha).softmax(dim=-1)


def _check_proposals(name: str, q: Tensor) -> None:
    if q.dim() == 0 or not q.shape[-1]:
        raise CreditInputError(f"{name} has shape {tuple(q.shape)}", expected="one or more proposals in its last axis")
    if bool((q.isnan() | (q == torch.inf)).any()) or bool((q == -torch.inf).all(dim=-1).any()):
        raise CreditInputError(
            f"{name} holds NaN or inf, or a state without any proposal", expected="finite numbers, -inf for none"
        )
