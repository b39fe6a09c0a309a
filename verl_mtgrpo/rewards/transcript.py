"""One rollout as rewards, metrics and reports see it.

The agent loop writes a ``Transcript`` while it generates. What the model wrote (``Turn.text``) and
what tools answered (``ToolCall.result``) are separate fields from the start, so that a reward never
has to tell them apart by looking for tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from verl_mtgrpo.errors import TranscriptError
from verl_mtgrpo.passages import Passage

TRANSCRIPT = "transcript"
"""Where a rollout carries its transcript: in verl's ``extra_fields`` as a dict, in dumps as JSON."""
DROPPED = "outcome/dropped"
"""Metric and mark of a rollout that no reward could be found for: 1.0 takes it out of the update."""
OUTAGE = "outage"
"""``end_reason`` of a rollout that ended because its search was down."""
MALFORMED_CALL = "malformed_call"
"""``end_reason`` of a rollout whose last turn calls tools in a way that verl's parser could not read."""
NO_TOKENS = "no_tokens"
"""``end_reason`` of a rollout for whose last turn the rollout server gave no token (an aborted request)."""
FAILED = "failed"
"""``end_reason`` of a branch of a tree of rollouts that raised an error; the other branches go on."""
FAILURE = "failure"
"""Where ``extra_fields`` of a failed branch say what error it raised."""
NODE_PATH = "node_path"
"""Where ``extra_fields`` say which turns a rollout shares with others (:mod:`verl_mtgrpo.credit.forest`)."""
DROPPED_REASON = "dropped_reason"
"""Where ``reward_extra_info`` says why a rollout was dropped; empty if it was not."""
TURN_REWARDS = "turn_rewards"
"""Where a rollout carries what each turn was paid: in ``reward_extra_info`` and dumps, a JSON list of K numbers."""


@dataclass(frozen=True)
class ToolCall:
    """One tool call of a turn and its outcome.

    Attributes:
        name: Tool name as the model wrote it.
        arguments: The arguments as the model wrote them (JSON text).
        result: What the tool answered, as the model saw it.
        ok: True if the tool ran and answered; False for unknown tools, bad arguments, failures and calls that were
            written and never carried out.
        error_kind: What was wrong, by name (:mod:`~verl_mtgrpo.rewards.measures` lists them); None if nothing.
            ``no_hits`` is a search that worked and found nothing: ``ok`` is True.
        error: The same for people, with more than the model got to read; empty if nothing was wrong.
        documents: The passages found, best first; empty for other tools.
        latency_s: Seconds the call took.
        seen: True if the result reached the model's context. False when it did not fit into
            ``response_length`` any more and verl dropped it, and for calls that were never carried out.
        repeat: True if this rollout had searched for the same before.
        faults: Kinds of tries that failed before the call ended, in order, one name a try.
        defused: True if something in ``result`` was broken up because it would have been a control token for the model,
            or would have closed the block that results are in.
        reward: What the tool itself says the call was worth (the second value of verl's ``execute``), a finite number;
            0.0 if it says nothing or None, as in verl. It is paid only if the reward function takes it.
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


@dataclass(frozen=True)
class Turn:
    r"""One assistant turn.

    Attributes:
        text: The whole turn: what the chat template opened of it, then what the model generated, decoded. End tokens
            behind it are left out, and in formats that cut turns what the last token says behind the closing tag.
        span: Half-open token range ``[start, end)`` of this turn in the response, observations counted.
            ``response_mask`` is 1 exactly inside the spans.
        tool_calls: Calls that the model wrote, in order, whatever their outcome: carried out, refused, beyond
            ``max_parallel_calls`` (``not_carried_out``), or unreadable to verl's parser (``bad_arguments``). A last
            turn that verl did not look into, because a limit ended the rollout first, has none.
        opened: What the chat template wrote of this turn into the generation prompt, as ``<think>\n``: the beginning
            of ``text`` that the model did not generate. Empty for most models.
    """

    text: str
    span: tuple[int, int]
    tool_calls: tuple[ToolCall, ...] = ()
    opened: str = ""

    @property
    def results(self) -> list[str]:
        """What tools answered and the model saw; only this can be a hit. Failed calls gave no result."""
        return [call.result for call in self.tool_calls if call.ok and call.seen]


@dataclass(frozen=True)
class Transcript:
    """One rollout.

    Attributes:
        turns: Assistant turns that left at least one token in the response, in order.
        end_reason: ``answered`` (a turn without tool call), ``malformed_call`` (a turn that calls tools, but verl's
            parser could read none of its calls and ended the rollout), ``max_turns``, ``response_length``,
            ``outage``, ``no_tokens`` or ``failed`` (a branch of a tree that raised an error).
        prompt: The question side: the chat messages of the prompt.
        max_turns: The rollout's limit of assistant turns, 0 if there is none.
        format: Name of the text format the model speaks (verl's ``multi_turn.format``).
        max_parallel_calls: How many calls of one turn are carried out (verl's ``multi_turn.max_parallel_calls``).
    """

    turns: tuple[Turn, ...]
    end_reason: str
    prompt: tuple[Mapping[str, Any], ...] = ()
    max_turns: int = 0
    format: str = "hermes"
    max_parallel_calls: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars: what crosses process borders and goes into dumps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transcript:
        """Inverse of :meth:`to_dict`; also takes what JSON made of it."""
        try:
            turns = tuple(_turn_from_dict(turn) for turn in data["turns"])
            return cls(
                turns=turns,
                end_reason=str(data["end_reason"]),
                prompt=tuple(dict(message) for message in data.get("prompt", ())),
                max_turns=int(data.get("max_turns", 0)),
                format=str(data.get("format", "hermes")),
                max_parallel_calls=int(data.get("max_parallel_calls", 1)),
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
        turns: One intermediate reward per turn of the transcript, all K turns. R^I is for the turns before the last
            (arXiv 2505.11821 v2, Eq. 9): our presets give 0 for the last one, also where it still searches.
        outcome: The outcome reward R^O, paid at the last turn.
        components: Named parts and measurements, each becomes a metric. Names use ``turn/…``, ``tool/…``
            and ``outcome/…``; a value may be None where it is not defined for this rollout.
    """

    turns: tuple[float, ...]
    outcome: float
    components: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])


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
