"""Describe the text formats of agents for rewards: the tags of a turn, and whether a turn is well formed.

Everything here takes time linear in the length of the text, and looks only at the model's own text. A turn in which the
model writes the tags of a *result* itself is malformed, and nothing inside these tags earns anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from verl_mtgrpo.errors import ConfigError

ANSWER = "answer"


@dataclass(frozen=True)
class TextFormat:
    """One format.

    Attributes:
        name: Name of verl's tool parser that reads the calls (``multi_turn.format``).
        thought: Tag that every turn has to start with; None if free text may be there instead.
        call: Tag around a tool call.
        result: Tag around a tool's answer, which only the environment writes.
        json_call: True if the call is ``{"name": …, "arguments": …}``; False if it is the query itself.
    """

    name: str
    thought: str | None
    call: str
    result: str
    json_call: bool

    def well_formed_call(self, text: str, calls: int = 1) -> bool:
        """Return True for a turn that consists of a thought (if the format requires one) and calls, and nothing else.

        Args:
            text: The model's text.
            calls: How many calls a turn may make (verl's ``max_parallel_calls``). Formats whose calls are not JSON are
                cut after the first call, so they allow only one.
        """
        inside = self._only(text, self.call, calls if self.json_call else 1)
        return inside is not None and all(is_call(one) if self.json_call else bool(one.strip()) for one in inside)

    def well_formed_answer(self, text: str) -> bool:
        """Return True for a turn that consists of a thought (if the format requires one) and exactly one answer."""
        return self._only(text, ANSWER) is not None

    def well_formed(self, text: str, calls: int = 1) -> bool:
        """Return True for a turn that is a call or an answer."""
        return self.well_formed_call(text, calls) or self.well_formed_answer(text)

    def _only(self, text: str, tag: str, most: int = 1) -> list[str] | None:
        """Return the contents of one to ``most`` ``tag``s that make up the whole turn; None if they do not."""
        thought = [] if self.thought is None else [f"<{self.thought}>", f"</{self.thought}>"]
        marks = list(islice(self._marks.finditer(text), len(thought) + 2 * most + 1))
        found = max(1, (len(marks) - len(thought)) // 2)
        if found > most or [mark.group() for mark in marks] != [*thought, *[f"<{tag}>", f"</{tag}>"] * found]:
            return None
        ends = [0, *(mark.end() for mark in marks[1::2])]
        outside = [text[end : mark.start()] for end, mark in zip(ends, marks[::2], strict=False)]
        free = 1 if self.thought is None else 0  # without thought tags, text may precede the call or answer
        if any(piece.strip() for piece in [*outside[free:], text[ends[-1] :]]):
            return None
        pairs = zip(marks[len(thought) :: 2], marks[len(thought) + 1 :: 2], strict=True)
        return [text[opened.end() : closed.start()] for opened, closed in pairs]

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        tags = {self.thought, self.call, self.result, ANSWER} - {None}
        return re.compile("</?(?:" + "|".join(sorted(re.escape(str(tag)) for tag in tags)) + ")>")


HERMES = TextFormat("hermes", thought=None, call="tool_call", result="tool_response", json_call=True)
SEARCH_R1 = TextFormat("search_r1", thought="think", call="search", result="information", json_call=False)
MTGRPO_XML = TextFormat("mtgrpo_xml", thought="reasoning", call="tool", result="result", json_call=True)

FORMATS = {one.name: one for one in (HERMES, SEARCH_R1, MTGRPO_XML)}
CUT_FORMATS = {one.name: one for one in (SEARCH_R1, MTGRPO_XML)}
"""Formats whose turns end at the first closing tag of a call or an answer, and which base models can use too."""


def text_format(name: str) -> TextFormat:
    """Return the format called ``name``; raise a ``ConfigError`` that lists the known ones if there is none."""
    if name not in FORMATS:
        raise ConfigError(
            f"there are no rules for turns in the format {name!r} (actor_rollout_ref.rollout.multi_turn.format), but "
            "this reward reads the tags of turns",
            fix=(
                f"choose one of {', '.join(FORMATS)}, or reward.turn.preset=paper_v1, judge or a custom function, "
                "which need no rules"
            ),
        )
    return FORMATS[name]


def is_call(text: str) -> bool:
    """Return True for the JSON of a call: an object with a name and arguments (``args`` in the paper's code)."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(call, dict) and isinstance(call.get("name"), str) and ("arguments" in call or "args" in call)


def share_well_formed(turns: Sequence[str], rules: TextFormat, calls: int = 1) -> float:
    """Return the share of well-formed turns, with at most ``calls`` calls each; 0.0 without turns."""
    return sum(rules.well_formed(turn, calls) for turn in turns) / len(turns) if turns else 0.0


# ---- the paper's v1 scores for <reasoning>, <tool> and <answer>

_FIELDS = (("reasoning",), ("tool", ANSWER))  # a message has one of each
_ALL_FIELDS = tuple(tag for field in _FIELDS for tag in field)


def v1_format_score(texts: Sequence[str]) -> float:
    """Return the mean score of the model's messages, each from 0 to 1 (times 0.2 in the reward).

    A message scores 0.4 · (fields present) / 2 if at least one field is complete, + 0.2 for spacing, + 0.2 if it starts
    with ``<reasoning>``, + 0.2 if it ends with ``</tool>`` or ``</answer>``. A field is present if any of its tags
    occurs. The paper's spacing test compares two readings of the same text that differ only in outer white space, so it
    cannot fail, and a text without any tag gets 0.2 (0.04 in the reward).
    """
    return sum(map(_v1_format, texts)) / len(texts) if texts else 0.0


def _v1_format(text: str) -> float:
    stripped = text.strip()
    present = sum(any(f"<{tag}>" in text or f"</{tag}>" in text for tag in field) for field in _FIELDS)
    complete = any(_is_complete(text, tag) for tag in _ALL_FIELDS)
    starts = stripped.startswith(f"<{_FIELDS[0][0]}>")
    ends = any(stripped.endswith(f"</{tag}>") for tag in _FIELDS[1])
    return 0.4 * present / 2 * complete + 0.2 + 0.2 * starts + 0.2 * ends


def _is_complete(text: str, tag: str) -> bool:
    start = text.find(f"<{tag}>")
    return start >= 0 and text.find(f"</{tag}>", start) >= 0


def v1_tag_score(texts: Sequence[str]) -> float:
    """Return the mean score of the model's messages, from 0 to 1 (times 0.2 in the reward).

    A message scores the sum of (1 - |opened - 1|) + (1 - |closed - 1|) over the tags that it uses, divided by the
    number of checks (two per tag), and 0 if it has no tags. A message with many tags scores below 0. As in the paper's
    code, only the mean is clipped at 0, so such a message lowers the mean of the others.
    """
    return max(0.0, sum(map(_v1_tags, texts)) / len(texts)) if texts else 0.0


def _v1_tags(text: str) -> float:
    counts = [(text.count(f"<{tag}>"), text.count(f"</{tag}>")) for tag in _ALL_FIELDS]
    used = [pair for pair in counts if any(pair)]
    if not used:
        return 0.0
    return sum(2 - abs(opened - 1) - abs(closed - 1) for opened, closed in used) / (2 * len(used))
