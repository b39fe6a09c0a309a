"""Work out what ``pair_dpo`` learns from pairs of an expert's action and the policy's own, number by number.

Plain Python, independent of the tensors of :mod:`verl_mtgrpo.credit.pairs`. Names of pairs and sides are text that
anybody may have written: they are compared, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.report.rollouts import DumpedRollout
from verl_mtgrpo.report.terms import Part, Term, Working

EQUAL, SIDES = "equal", ("expert", "own")
ESTIMATOR = "pair_dpo"


@dataclass(frozen=True)
class Pair:
    """Two actions at one state.

    Attributes:
        expert: Number of the expert's action in the group.
        own: Number of the policy's own.
        expert_ratio: Σ log π - log π_ref over the tokens of the expert's.
        own_ratio: The same of the policy's own.
        beta: β.
    """

    expert: int
    own: int
    expert_ratio: float
    own_ratio: float
    beta: float

    @property
    def margin(self) -> float:
        """Return D = β (lr(expert) - lr(own)): how far the policy prefers the expert's, compared with its reference."""
        return self.beta * (self.expert_ratio - self.own_ratio)

    @property
    def share(self) -> float:
        """Return σ(-D), which is near 1 where the policy prefers its own action, and near 0 where it no longer does."""
        return 1 / (1 + math.exp(min(self.margin, 700.0)))


def pairs_of(rollouts: Sequence[DumpedRollout]) -> list[Pair] | None:
    """Return the complete pairs of a group that were trained on; None if it has none of any kind.

    A name that three rows have, a side that two have, and numbers that are no numbers make no pair.
    """
    if not any(one.pair_id for one in rollouts):
        return None
    found: dict[str, list[int]] = {}
    for number, one in enumerate(rollouts):
        if one.pair_id and one.dropped is None and one.log_ratio:
            found.setdefault(one.pair_id, []).append(number)
    pairs, beta = list[Pair](), _beta(rollouts[0].settings)
    for rows in found.values() if beta else ():
        at = {rollouts[row].pair_side: row for row in rows}
        if len(rows) == 2 and set(at) == set(SIDES):
            expert, own = (math.fsum(rollouts[at[side]].log_ratio or ()) for side in SIDES)
            pairs.append(Pair(at["expert"], at["own"], expert, own, beta))
    return [pair for pair in pairs if math.isfinite(pair.margin)]


def explain_pairs(rollouts: Sequence[DumpedRollout]) -> Working | None:
    """Return the term of each turn: +β σ(-D) for the expert's action, -β σ(-D) for the policy's own.

    Returns:
        None if the group has no pairs.
    """
    pairs = pairs_of(rollouts)
    if pairs is None:
        return None
    terms: list[list[Term]] = [[_nothing(one)] for one in rollouts]
    for pair in pairs:
        parts = (Part("expert_ratio", pair.expert_ratio, pair.beta), Part("own_ratio", pair.own_ratio, -pair.beta))
        for row, weight in ((pair.expert, pair.beta), (pair.own, -pair.beta)):
            terms[row] = [
                Term("pair", 0, pair.share, 0.0, None, 1, pair.share, weight=weight, baseline="pair", parts=parts)
            ]
    return [[some] * len(one.turn_rewards) for one, some in zip(rollouts, terms, strict=True)]


def _beta(settings: Mapping[str, Any]) -> float:
    """Return β; 0 if the dump says something else."""
    from verl_mtgrpo.credit import ESTIMATORS  # late: torch takes seconds to import, and reading dumps does not need it

    beta = settings.get("beta", ESTIMATORS[ESTIMATOR].knobs["beta"])
    return float(beta) if isinstance(beta, (int, float)) and 0 < beta < math.inf else 0.0


def _nothing(rollout: DumpedRollout) -> Term:
    """Return the term of an action without a partner."""
    baseline = "equal" if rollout.pair_side == EQUAL else "no_pair"
    return Term("pair", 0, 0.0, 0.0, None, 1, 0.0, baseline=baseline)
