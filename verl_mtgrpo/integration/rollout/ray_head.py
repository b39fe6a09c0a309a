"""Questions to Ray's head (its GCS), which may be too busy to answer: no answer is not the death of anything.

A head that stalls (it writes a checkpoint to a network disk, spills objects, or hundreds of processes start) lets
calls such as ``ray.util.list_named_actors`` time out after a minute. verl makes no such calls while it waits, so a
run of stock verl outlives this; ours does too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import AuthenticationError, RayActorError, RayError, RayTaskError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ABOUT_SOMETHING_ELSE = (RayActorError, RayTaskError, AuthenticationError)
"""Errors of Ray about an actor, a task or this process, which mean that the head has answered."""


class RayHead:
    """Asks Ray's head, and remembers since when it has not answered.

    Attributes:
        silent_since: ``time.monotonic()`` of the first question without an answer; None if the last one had one.
    """

    def __init__(self) -> None:
        self.silent_since: float | None = None

    def ask(self, question: Callable[[], T]) -> T | None:
        """Return what ``question`` returns; None, and one log line, if the head no longer answers.

        Args:
            question: A call of Ray's that needs its head. A value of None is not told apart from no answer.
        """
        try:
            answer = question()
        except _ABOUT_SOMETHING_ELSE:
            raise
        except (RayError, OSError) as error:  # a time-out (GetTimeoutError) or a broken connection (RpcError, OSError)
            if self.silent_since is None:
                self.silent_since = time.monotonic()
                logger.warning(
                    "Ray's head does not answer (%s: %s); the run continues and asks again",
                    *(type(error).__name__, " ".join(str(error).split())),
                )
            return None
        if self.silent_since is not None:
            logger.warning("Ray's head answers again, after %.0f s", time.monotonic() - self.silent_since)
            self.silent_since = None
        return answer

    @property
    def silent_s(self) -> float:
        """Seconds for which the head has not answered; 0.0 if it has."""
        return 0.0 if self.silent_since is None else time.monotonic() - self.silent_since
