"""Judge the tool calls of a rollout by its transcript alone: did they succeed, change something, repeat, get used?

Each function returns, for every turn, one boolean per call, in the order in which the model wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence

from verl_mtgrpo.rewards.answers import is_spaceless
from verl_mtgrpo.rewards.measures import NOT_CARRIED_OUT, SERVICE_ERRORS
from verl_mtgrpo.rewards.transcript import ToolCall, Transcript, Turn

ByCall = list[list[bool]]
"""For each turn, one boolean per call."""

_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")
_SHORTEST = 3  # letters
# Words that are in most results, whatever was asked. Those of other languages count, which makes `used` more generous.
_COMMON = """\
about above after again all also and another any are because been before being below between both but can cannot
could did does doing done down during each either every few for from further had has have having her here hers him
his how however into its itself just more most much must neither nor not now off once one only other our ours out
over own per same several she should since some such than that the their them then there these they this those
through thus too under until upon very via was were what when where whether which while who whom whose why will
with within without would yes you your answer false found final none null result results true"""
_EMPTY = frozenset(_COMMON.split())


def call_succeeded(call: ToolCall) -> bool:
    """Return True if the tool ran, did not report a failure, and the model saw its result."""
    return call.ok and call.seen


def changed_calls(turns: Sequence[Turn]) -> ByCall:
    """Return which calls succeeded and changed something.

    A tool that reports ``changed`` knows. For other tools a call changed something if it told the model something: its
    result is not empty, is not a hint that nothing was found (``no_hits``), and differs in more than white space from
    every result, of whatever tool, that the model had read before in this rollout.
    """
    read, found = set[str](), ByCall()
    for turn in turns:
        found.append([])
        for call in turn.tool_calls:
            text = " ".join(call.result.split())
            told = bool(text) and not call.error_kind and text not in read
            found[-1].append(call_succeeded(call) and (told if call.changed is None else call.changed))
            if call.seen:
                read.add(text)
    return found


def repeated_calls(turns: Sequence[Turn]) -> ByCall:
    """Return which calls repeat an earlier one of the rollout.

    A call repeats another if it has the same tool and the same arguments, whatever the order of keys and white space,
    or if the tool itself says so, as the search tool does. Trying again what a failing service or
    ``max_parallel_calls`` prevented is no repetition. Nor is a call after one that changed something by the tool's own
    report (``changed``): the same call may now do something else.
    """
    made, found = set[tuple[str, str]](), ByCall()
    for turn in turns:
        found.append([])
        for call in turn.tool_calls:
            key = (call.name, _same_arguments(call.arguments))
            found[-1].append(call.repeat or key in made)
            if call.ok and call.changed:
                made.clear()
            elif call.ok or call.error_kind not in (NOT_CARRIED_OUT, *SERVICE_ERRORS):
                made.add(key)
    return found


def _same_arguments(arguments: str) -> str:
    """Return the arguments in a form in which equal ones are the same text."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):  # the model's JSON may be broken, or a million brackets
        return " ".join(arguments.split())


def used_calls(transcript: Transcript, words: Collection[str]) -> ByCall:
    """Return which calls succeeded and brought a word of the answer into the rollout.

    A call brought a word if its result is the first place where the word occurs: not in the prompt, not in what the
    model had written until then, this turn included, and not in an earlier result.

    Args:
        transcript: The rollout.
        words: The words of the answer that say something (:func:`telling_words`).
    """
    missing = set(words)
    for message in transcript.prompt:
        missing -= _in(str(message.get("content", "")), missing)
    found = ByCall()
    for turn in transcript.turns:
        missing -= _in(turn.text, missing)
        found.append([])
        for call in turn.tool_calls:
            brought = _in(call.result, missing) if call.seen else set[str]()
            found[-1].append(call_succeeded(call) and bool(brought))
            missing -= brought
    return found


def telling_words(text: str) -> set[str]:
    """Return the words of a text, in lower case, without those that any text has.

    A word is a run of letters and digits; ``1,234`` and ``3.5`` are one. Words of fewer than 3 letters without a digit
    and common English ones (``the``, ``with``, ``yes``, ``true``) say nothing. In scripts without spaces between words,
    a run of letters is one word, whatever its length.
    """
    return {
        word
        for word in set(_words(text))
        if any(map(str.isdigit, word))
        or any(map(is_spaceless, word))
        or (len(word) >= _SHORTEST and word not in _EMPTY)
    }


def _words(text: str) -> Iterable[str]:
    return _WORD.findall(text.lower())


def _in(text: str, words: set[str]) -> set[str]:
    """Return those of the words that occur in a text; in scripts without spaces, also inside a longer run."""
    if not words:
        return set()
    there, lower = set(_words(text)), text.lower()
    return {word for word in words if word in there or (any(map(is_spaceless, word)) and word in lower)}
