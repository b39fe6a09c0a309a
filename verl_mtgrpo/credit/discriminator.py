"""Teach a critic to tell an expert's turns from the policy's own: a classifier D(state, turn).

The dense reward :func:`~verl_mtgrpo.credit.dense.discriminator` pays the policy's turns by what D takes them for. This
is generative adversarial imitation (Ho & Ermon, arXiv 1606.03476, algorithm 1) with a turn as the action: D learns, the
policy learns to be taken for the expert, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from verl_mtgrpo.credit.checks import refusal
from verl_mtgrpo.credit.pairs import EQUAL, SIDES
from verl_mtgrpo.credit.turns import segment_turns
from verl_mtgrpo.errors import CreditInputError

_SHARE = {SIDES[0]: (1.0, 1.0), SIDES[1]: (0.0, 1.0), EQUAL: (0.5, 2.0)}
"""Side -> the share of expert's actions among those that the row stands for, and how many these are."""


def classification_loss(logits: Tensor, expert: Tensor) -> Tensor:
    """Return -[e log D + (1 - e) log(1 - D)] of each action, with D = σ(logit).

    Source: arXiv 1606.03476, equation 17, as a loss; D is the probability that the action is the expert's.

    Args:
        logits: Any shape.
        expert: e, the same shape: 1 for an expert's action, 0 for the policy's own, between them for a mixture.
    """
    return softplus(logits) - expert * logits


def discriminator_targets(response_mask: Tensor, pair_side: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return what D learns at each place of each row, and how much it counts.

    Place p is where p response tokens have been read. D reads a turn where it ends, so that it has seen all of it. An
    expert's turn has e = 1, one of the policy's own e = 0. A row whose action both wrote (``equal``) stands for both:
    e = 1/2, twice.

    Args:
        response_mask: ``(B, T)``, 1 at generated tokens.
        pair_side: ``(B,)``, ``expert``, ``own`` or ``equal``; None or empty for a row without an expert's action, from
            which nothing is learnt.

    Returns:
        ``(expert, weight)``, both ``(B, T + 1)`` float32, 0 where nothing is learnt.

    Raises:
        CreditInputError: a side is unknown, or no row has one.
    """
    turns = segment_turns(response_mask)
    rows, length = response_mask.shape
    if len(pair_side) != rows:
        raise refusal("pair_side", f"pair_side has {len(pair_side)} entries for {rows} rows", expected="one per row")
    known = [_share_of(side, row) for row, side in enumerate(pair_side)]
    if not any(weight for _, weight in known):
        raise CreditInputError(
            "no row is of a pair, so there are no expert's actions to learn from",
            fix="use the agent loop mtgrpo_pairs_agent, and rows with the column expert",
        )
    of_row = torch.tensor(known, dtype=torch.float32, device=response_mask.device)
    expert, weight = torch.zeros(2, rows, length + 1, device=response_mask.device)
    row, turn = turns.alive_BK.nonzero(as_tuple=True)
    place = (turns.first_BK + turns.tokens_BK)[row, turn]
    expert[row, place], weight[row, place] = of_row[row].unbind(dim=1)
    return expert, weight


def discriminator_quality(values_after: Tensor, response_mask: Tensor, pair_side: Sequence[Any]) -> dict[str, float]:
    """Return how well D tells turns apart: the mean of D over the expert's and the policy's own, and its accuracy.

    Args:
        values_after: ``(B, T)``, D's logit after each response token.
        response_mask: ``(B, T)``, 1 at generated tokens.
        pair_side: ``(B,)``, as for :func:`discriminator_targets`. Rows whose action both wrote are left out.

    Returns:
        ``discriminator/expert``, ``discriminator/own`` and ``discriminator/accuracy``, those that are defined.
    """
    turns = segment_turns(response_mask)
    logits_BK = turns.at_last(values_after.float())
    named: dict[str, float] = {}
    right: list[Tensor] = []
    for side in SIDES:
        rows = torch.tensor([one == side for one in pair_side], dtype=torch.bool, device=logits_BK.device)
        logits = logits_BK[turns.alive_BK & rows[:, None]]
        if len(logits):
            named[f"discriminator/{side}"] = float(torch.sigmoid(logits).mean())
            right.append((logits > 0) == (side == SIDES[0]))
    if right:
        named["discriminator/accuracy"] = float(torch.cat(right).float().mean())
    return named


def _share_of(side: Any, row: int) -> tuple[float, float]:
    if side and side not in _SHARE:
        raise CreditInputError(f"pair_side is {side!r} in row {row}", expected=f"one of {(*_SHARE,)}")
    return _SHARE[side] if side else (0.0, 0.0)
