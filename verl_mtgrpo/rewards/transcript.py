"""Represent one rollout for rewards, metrics and reports.

The agent loop writes a ``Transcript`` while it generates. The model's text (``Turn.text``) and the tools' answers
(``ToolCall.result``) are separate fields from the start, so that a reward never has to tell them apart by their tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from verl_mtgrpo.errors import TranscriptError
from verl_mtgrpo.passages import Passage

TRANSCRIPT = "transcript"
"""Key of a rollout's transcript: a dict in verl's ``extra_fields``, JSON in dumps."""
DROPPED = "outcome/dropped"
"""Metric of a rollout without a fair reward; 1.0 removes it from the update."""
OUTAGE = "outage"
"""``end_reason`` of a rollout that ended because its search was down."""
MALFORMED_CALL = "malformed_call"
"""``end_reason`` of a rollout whose last turn has tool calls that verl's parser could not read."""
NO_TOKENS = "no_tokens"
"""``end_reason`` of a rollout for whose last turn the rollout server gave no token (an aborted request)."""
FAILED = "failed"
"""``end_reason`` of a branch of a tree of rollouts that raised an error; the other branches go on."""
FAILURE = "failure"
"""Where ``extra_fields`` of a failed branch say what error it raised, and those of a broken environment."""
DONE = "done"
"""``end_reason`` of a rollout whose environment ended the episode."""
BROKEN = "broken_environment"
"""``end_reason`` of a rollout whose environment raised an error or did not answer."""
NODE_PATH = "node_path"
"""Where ``extra_fields`` say which turns a rollout shares with others (:mod:`verl_mtgrpo.credit.forest`)."""
DROPPED_REASON = "dropped_reason"
"""Key in ``reward_extra_info`` of the reason why a rollout was dropped; empty if it was not."""
TURN_REWARDS = "turn_rewards"
"""Key in ``reward_extra_info`` and dumps of the rewards paid to the turns, a JSON list of K numbers."""
LAST_TURN = "the last turn is paid the outcome alone"
"""Note of a last turn, in the presets that have notes."""
TURN_DENSE = "turn_dense"
"""Key in a dump of what dense rewards added to each turn, JSON: ``{name: [K numbers]}``."""
TURN_NOTES = "turn_notes"
"""Key there of what the reward function says of its rewards, JSON: ``{"turns": [K texts], "outcome": text}``. It is
absent if the function says nothing."""


@dataclass(frozen=True)
class ToolCall:
    """One tool call of a turn and its outcome.

    Attributes:
        name: Tool name as the model wrote it.
        arguments: The arguments as the model wrote them (JSON text).
        result: The tool's answer, as the model saw it.
        ok: True if the tool ran and answered; False for unknown tools, bad arguments, failures and calls that were
            written and never carried out.
        error_kind: What was wrong, by name (:mod:`~verl_mtgrpo.rewards.measures` lists them); None if nothing.
            ``no_hits`` is a search that worked and found nothing: ``ok`` is True.
        error: A description for people, with more details than the model got to read; empty if nothing was wrong.
        documents: The passages found, best first; empty for other tools.
        latency_s: Seconds the call took.
        seen: True if the result reached the model's context. False if verl dropped it because ``response_length`` had
            no room left, and for calls that were never carried out.
        repeat: True if this rollout had searched for the same before.
        faults: Kinds of tries that failed before the call ended, in order, one name per try.
        defused: True if something in ``result`` was broken up because it would have been a control token for the model,
            or would have closed the block that results are in.
        reward: The tool's own reward for the call (the second value of verl's ``execute``), a finite number; 0.0 if the
            tool returns none, as in verl. It is paid only if the reward function uses it.
        why: Why an ordinary call failed, in the tool's own words (:class:`~.any_tool.report.ToolReport`); often empty.
        changed: True or False if the tool reports whether the call changed its state; None if it says nothing of it.
    """

    name: str
    arguments: str
    result: str = ""
    ok: bool = True
    error_kind: str | None = None
    error: str = ""
    documents: tuple[Passage, ...] = ()
    latency_s: float = 0.0
    seen: bool = True
    repeat: bool = False
    faults: tuple[str, ...] = ()
    reward: float = 0.0
    defused: bool = False
    why: str = ""
    changed: bool | None = None


@dataclass(frozen=True)
class Turn:
    r"""One assistant turn.

    Attributes:
        text: The whole turn: the part that the chat template opened, and the decoded tokens that the model generated.
            It does not contain end tokens or, in formats that cut turns, text of the last token after the closing tag.
        span: Half-open token range ``[start, end)`` of this turn in the response, which includes tool results.
            ``response_mask`` is 1 exactly inside the spans.
        tool_calls: All calls that the model wrote, in order: carried out, refused, beyond ``max_parallel_calls``
            (``not_carried_out``), or unreadable to verl's parser (``bad_arguments``). If a limit ended the rollout
            before verl parsed the last turn, that turn has none.
        opened: The beginning of ``text`` that the chat template wrote into the generation prompt, such as
            ``<think>\n``, and that the model did not generate. Empty for most models.
    """

    text: str
    span: tuple[int, int]
    tool_calls: tuple[ToolCall, ...] = ()
    opened: str = ""

    @property
    def results(self) -> list[str]:
        """Return the tool results that the model saw, which alone can be hits. Failed calls have no result."""
        return [call.result for call in self.tool_calls if call.ok and call.seen]


@dataclass(frozen=True)
class Transcript:
    """One rollout.

    Attributes:
        turns: Assistant turns that left at least one token in the response, in order.
        end_reason: ``answered`` (a turn without a tool call), ``malformed_call`` (a turn with tool calls, none of which
            verl's parser could read, so that verl ended the rollout), ``max_turns``, ``response_length``, ``outage`` or
            ``no_tokens``; ``failed`` (a branch of a tree that raised an error); in an environment also ``done`` (the
            episode is over) or ``broken_environment``.
        prompt: The chat messages of the prompt.
        max_turns: Largest number of assistant turns; 0 for no limit.
        format: Name of the model's text format (verl's ``multi_turn.format``).
        max_parallel_calls: How many calls of one turn are carried out (verl's ``multi_turn.max_parallel_calls``).
        info: What the environment said beside texts and rewards, names with numbers or texts; empty without one.
    """

    turns: tuple[Turn, ...]
    end_reason: str
    prompt: tuple[Mapping[str, Any], ...] = ()
    max_turns: int = 0
    format: str = "hermes"
    max_parallel_calls: int = 1
    info: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])

    def to_dict(self) -> dict[str, Any]:
        """Return the transcript as plain dicts, lists and scalars, for other processes and for dumps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transcript:
        """Read the result of :meth:`to_dict`, also after a round trip through JSON."""
        try:
            turns = tuple(_turn_from_dict(turn) for turn in data["turns"])
            return cls(
                turns=turns,
                end_reason=str(data["end_reason"]),
                prompt=tuple(dict(message) for message in data.get("prompt", ())),
                max_turns=int(data.get("max_turns", 0)),
                format=str(data.get("format", "hermes")),
                max_parallel_calls=int(data.get("max_parallel_calls", 1)),
                info=dict(data.get("info", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TranscriptError(
                f"not a transcript: {type(error).__name__}: {error}",
                expected="what Transcript.to_dict() wrote",
            ) from error


@dataclass(frozen=True)
class TurnRewards:
    """The result of a reward function for one rollout.

    Attributes:
        turns: One intermediate reward for each of the K turns of the transcript. R^I is for the turns before the last
            (arXiv 2505.11821 v2, Eq. 9): our presets give 0 to the last one, even if it still searches.
        outcome: The outcome reward R^O, paid at the last turn.
        components: Named parts and measurements, each of which becomes a metric. Names begin with ``turn/``, ``tool/``
            or ``outcome/``; a value may be None if it is not defined for this rollout.
        notes: What each turn earned its reward for, in words, one text per turn; empty if there is nothing to say. They
            are kept in dumps and shown by ``mtgrpo report``.
        outcome_note: The same for the outcome.
    """

    turns: tuple[float, ...]
    outcome: float
    components: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    notes: tuple[str, ...] = ()
    outcome_note: str = ""


def _turn_from_dict(data: Mapping[str, Any]) -> Turn:
    start, end = data["span"]
    calls = tuple(_call_from_dict(call) for call in data.get("tool_calls", ()))
    opened = str(data.get("opened", ""))
    return Turn(text=str(data["text"]), span=(int(start), int(end)), tool_calls=calls, opened=opened)


def _call_from_dict(data: Mapping[str, Any]) -> ToolCall:
    fields = dict(data)
    fields["documents"] = tuple(Passage(**document) for document in fields.get("documents", ()))
    fields["faults"] = tuple(fields.get("faults", ()))
    return ToolCall(**fields)
