"""Map the rewards of all turns of a rollout to one number, by which verl filters groups without anything to learn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

TURN_PATTERN = "turn_pattern"
"""Key of :func:`turn_pattern` in ``reward_extra_info``, for ``algorithm.filter_groups.metric=turn_pattern``."""

_BYTES = 5


def turn_pattern(paid: Sequence[float]) -> float:
    """Map the rewards of all turns to one number, equal for two rollouts only if all their turns were paid the same.

    verl's group filtering (DAPO, arXiv 2503.14476) removes groups in which one number is the same for every rollout.
    The total is the wrong number for turn-level credit: (0.7, 0.5) and (0.2, 1.0) have the same total, but every turn
    has something to learn. This number is a hash of the rewards as the estimator sees them, in float32, with -0.0 as
    0.0; it depends on the number of turns too.

    It is an integer below 2^40, so that sums of up to 8192 of them are exact and the standard deviation of equal ones,
    by which verl compares, is exactly 0 (that of three times 0.1 is not). A group is removed by mistake only if all its
    different patterns collide: with a probability of 2^-40 for two, once in 10^12 groups.

    Args:
        paid: The reward paid to each turn.

    Returns:
        The number; NaN, which equals nothing, if a reward is NaN. Neither its order nor its average means anything.
    """
    rewards = np.asarray(paid, dtype="<f4") + np.float32(0.0)  # -0.0 + 0.0 = 0.0
    if np.isnan(rewards).any():
        return math.nan
    digest = hashlib.blake2b(rewards.astype("<f4").tobytes(), digest_size=_BYTES).digest()
    return float(int.from_bytes(digest, "big"))
