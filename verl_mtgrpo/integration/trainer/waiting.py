"""Stall timeout: verl waits for rollouts indefinitely, even if the workers that make them are dead."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from verl_mtgrpo.errors import ConfigError, StalledError

logger = logging.getLogger(__name__)

SAY_EVERY_S = 60.0


class StallGuard:
    """Says from time to time that no rollout ended, and raises when that has gone on for too long.

    Args:
        timeout_s: seconds without any rollout ending after which to raise; None to wait indefinitely.
        clock: tells the time in seconds.
    """

    def __init__(self, timeout_s: float | None, clock: Callable[[], float] = time.monotonic):
        if timeout_s is not None and not float(timeout_s) > 0:
            raise ConfigError(
                f"trainer.v1.sampler.sampler_kwargs.stall_timeout_s={timeout_s}",
                expected="a number of seconds above 0, or null to wait indefinitely",
            )
        self.timeout_s = None if timeout_s is None else float(timeout_s)
        self.clock = clock
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to wait for the rollouts of a step."""
        self.step, self.seen = step, None
        self.since = self.said = self.clock()

    def look(self, ended: int, open_groups: Collection[str]) -> None:
        """Check for progress; called while waiting.

        Args:
            ended: number of finished rollouts.
            open_groups: questions with unfinished rollouts.

        Raises:
            StalledError: no rollout ended and no question was finished for ``timeout_s``.
        """
        now, state = self.clock(), (ended, frozenset(open_groups))
        if state != self.seen:
            self.seen, self.since, self.said = state, now, now
            return
        still = now - self.since
        what = (
            f"step {self.step}: no rollout finished for {still:.0f} s; {len(open_groups)} questions are not finished, "
            f"{ended} rollouts are done"
        )
        if self.timeout_s is not None and still >= self.timeout_s:
            raise StalledError(
                f"{what}. Something hangs: the rollout server, a tool or a reward function that never answers",
                fix=(
                    "look above for their last output, give tools and rewards a timeout, or raise "
                    "trainer.v1.sampler.sampler_kwargs.stall_timeout_s if one rollout may take that long; then start "
                    "again with the same command: verl continues from its last checkpoint"
                ),
            )
        if now - self.said >= SAY_EVERY_S:
            self.said = now
            end = "" if self.timeout_s is None else f" (the run stops after {self.timeout_s:.0f} s)"
            logger.warning("%s%s", what, end)
