"""One number for what all turns of a rollout were paid, to tell groups with something to learn from the others."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

TURN_PATTERN = "turn_pattern"
"""Where ``reward_extra_info`` carries :func:`turn_pattern`, for ``algorithm.filter_groups.metric=turn_pattern``."""

_BYTES = 5


def turn_pattern(paid: Sequence[float]) -> float:
    """Map what each turn was paid to one number, equal for two rollouts only if all their turns were paid the same.

    verl's group filtering (DAPO, arXiv 2503.14476) takes out groups in which one number is the same for every
    rollout. Their total is the wrong number for turn-level credit: (0.7, 0.5) and (0.2, 1.0) add up to the same, and
    every turn has something to learn. This one is a hash of the rewards as the estimator sees them, in float32, with
    -0.0 as 0.0; the number of turns counts.

    It is an integer below 2^40, so that sums of up to 8192 of them are exact, and the standard deviation of equal ones,
    by which verl compares, is exactly 0 (that of three times 0.1 is not). A group is removed wrongly only if
    all its different patterns collide: with a probability of 2^-40 for two, once in 10^12 groups.

    Args:
        paid: What each turn was paid.

    Returns:
        The number; NaN, which is equal to nothing, if a reward is NaN. It has no order, and an average means nothing.
    """
    rewards = np.asarray(paid, dtype="<f4") + np.float32(0.0)  # -0.0 + 0.0 = 0.0
    if np.isnan(rewards).any():
        return math.nan
    digest = hashlib.blake2b(rewards.astype("<f4").tobytes(), digest_size=_BYTES).digest()
    return float(int.from_bytes(digest, "big"))
