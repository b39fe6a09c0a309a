"""Ask Ray's head (its GCS), which may be too busy to answer; no answer does not mean that anything has died.

While the head is stalled (a checkpoint goes to a network disk, objects are spilled, hundreds of processes start), calls
such as ``ray.util.list_named_actors`` time out after a minute. verl makes no such calls while it waits, so a run of
stock verl survives this, and ours has to survive it too.
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
    """Asks Ray's head, and remembers how long it has not answered.

    Attributes:
        silent_since: ``time.monotonic()`` of the first question without an answer; None if the last one was answered.
    """

    def __init__(self) -> None:
        self.silent_since: float | None = None

    def ask(self, question: Callable[[], T]) -> T | None:
        """Return what ``question`` returns; None, and one log line, if the head no longer answers.

        Args:
            question: A call to Ray that needs its head. It must not return None, which means no answer here.
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
        """Return for how many seconds the head has not answered; 0.0 if it has."""
        return 0.0 if self.silent_since is None else time.monotonic() - self.silent_since
