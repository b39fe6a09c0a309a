"""Every error this package raises on purpose.

One root, so that a caller can catch all of them; each kind is also the builtin it replaces, so that code that knows
nothing of us still behaves. An error says in three fields what was found, what was expected and what to do about it.
All of them can be pickled: Ray sends exceptions between processes.
"""

from __future__ import annotations


class MTGRPOError(Exception):
    """Root of all errors of verl_mtgrpo.

    ``str()`` joins the fields to one sentence: ``{message}, expected {expected}; {fix}``, without those that are empty.

    Args:
        message: What was found.
        expected: What was expected in its place.
        fix: What to do about it.
    """

    def __init__(self, message: str = "", *, expected: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.expected, self.fix = expected, fix

    @property
    def found(self) -> str:
        """What was found and what was expected, without what to do about it."""
        return f"{self.args[0]}, expected {self.expected}" if self.expected else str(self.args[0])

    def __str__(self) -> str:
        return f"{self.found}; {self.fix}" if self.fix else self.found


class ConfigError(MTGRPOError, ValueError):
    """A setting is missing, unknown or does not fit the others."""


class AbsentError(ConfigError):
    """Something that this process cannot find, and another process of the run may."""


class CreditInputError(MTGRPOError, ValueError):
    """Tensors or settings given to an estimator have the wrong shape, type or values."""

    argument = ""
    """Name of the argument at fault, for callers that know where it was set; empty if that does not help."""


class DataError(MTGRPOError, ValueError):
    """A question set or corpus cannot be read as what it should be."""


class NoAnswersError(DataError):
    """A question set can be read, but none of its questions has an answer."""


class TranscriptError(MTGRPOError, ValueError):
    """A rollout does not carry the transcript that rewards are computed from."""


class ToolError(MTGRPOError, TypeError):
    """A tool returned something that a tool cannot return."""


class EnvironmentFailed(MTGRPOError, RuntimeError):
    """An environment raised, hung or answered nonsense: the rollout is left out of the update and counted."""

    kind = "environment_error"
    """Name of the failure in transcripts and metrics (``tool/errors/<kind>``)."""


class EnvironmentTimeout(EnvironmentFailed):
    """An environment did not answer in time."""

    kind = "environment_timeout"


class JudgeError(MTGRPOError, RuntimeError):
    """The model that judges rollouts could not be asked, or gave no score."""


class TooLongError(JudgeError):
    """What a judge was to read is longer than its context."""


class DropRollout(MTGRPOError, RuntimeError):
    """Raised by a reward function that cannot score a rollout: it is left out of the update and counted."""


class EmptyBatchError(MTGRPOError, RuntimeError):
    """Every rollout of a training batch was dropped: there is nothing to train on."""


class NoTokensError(MTGRPOError, RuntimeError):
    """The rollout server returned no token for a rollout, so it cannot become a row of the batch."""


class WorkerDiedError(MTGRPOError, RuntimeError):
    """A process of the run died that it cannot do without."""


class StalledError(MTGRPOError, TimeoutError):
    """Rollouts are waited for, and none has ended for too long."""


class StorageError(MTGRPOError, OSError):
    """A file of the run could not be written: a full disk, most often."""


class RetrievalError(MTGRPOError, RuntimeError):
    """A search could not be carried out (as opposed to: it found nothing)."""

    kind = "outage"
    """Name of the failure in transcripts and metrics (``tool/errors/<kind>``)."""
    faults: tuple[str, ...] = ()
    """Kinds of the tries that failed before this error, in order, one name per try."""

    status: int | None = None
    """HTTP status of a service's last answer; None if there was none."""

    retry_after_s = 0.0
    """How long in seconds a service asked to wait before the next try."""


class IndexFormatError(RetrievalError, ValueError):
    """A folder is not an index of verl-mtgrpo, has another version, or is damaged."""

    kind = "bad_index"


class NoIndexError(IndexFormatError):
    """There is no index of verl-mtgrpo where one was expected."""


class RetrievalTimeout(RetrievalError, TimeoutError):
    """The search service did not answer in time."""

    kind = "timeout"


class RetrievalUnreachable(RetrievalError, ConnectionError):
    """No connection to the search service, or it broke before an answer came."""

    kind = "unreachable"


class RetrievalBusy(RetrievalError):
    """The search service refused for overload (HTTP 429) until patience ran out."""

    kind = "busy"


class RetrievalServerError(RetrievalError):
    """The search service failed (HTTP 5xx)."""

    kind = "server_error"


class RetrievalRejected(RetrievalError):
    """The search service refused the request itself (other HTTP 4xx): asking again does not help."""

    kind = "rejected"


class RetrievalBadAnswer(RetrievalError):
    """The search service sent something that is not an answer: broken JSON, half a body, an unknown layout."""

    kind = "bad_answer"


class CompatibilityError(MTGRPOError, RuntimeError):
    """The installed verl (or another package) is not one this version was tested with."""


class GenerationError(MTGRPOError, RuntimeError):
    """A request could not be generated, or was cut off before its end."""


class TrainingFailed(MTGRPOError, RuntimeError):
    """The training process ended with an error; the message has its cause and the path of its log."""
