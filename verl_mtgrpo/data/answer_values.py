"""Turn the value of an answer column into a flat list of answers, however a question set nests or writes it.

* One answer, or a list of answers, nested or not.
* A dictionary: TriviaQA's ``{value, aliases}``, SQuAD's ``{text}`` (one or, as the Hugging Face hub stores it, a list)
  and QED's span ``{start, end, string}``.
* Any of these written as text: as JSON (PopQA's ``possible_answers``), as Python shows it (a CSV file of lists that
  pandas wrote), or as numpy shows an array (``['one' 'two']``, ``array(['one'], dtype=object)``). Text is parsed,
  never executed.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterable
from typing import Any, cast

_ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=\w+)?\)", re.DOTALL)
_NO_VALUE = object()


def answers_in(value: Any, *, several: bool) -> list[Any]:
    """Return the answers in ``value``, in their order; they may be numbers or booleans.

    Args:
        value: The value of an answer column.
        several: True if the column holds several answers. If not, text in brackets is a list only if it
            holds strings: ``[0, 1]`` may well be the answer to a maths question.

    Raises:
        KeyError: A dictionary has none of the layouts above.
    """
    if value is None:
        return []
    if isinstance(value, str):
        written = _written(value)
        if written is _NO_VALUE or not (several or _is_of_texts(written)):
            return [value]
        return answers_in(written, several=several) if isinstance(written, (list, dict)) else [written]
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if "value" in fields:
            return [*answers_in(fields["value"], several=False), *answers_in(fields.get("aliases"), several=True)]
        return _all(fields["string"] if "string" in fields else fields["text"])
    return _all(value)


def _all(value: Any) -> list[Any]:
    """Collect the answers in each element of a list; text in a list is an answer, not another list."""
    if not isinstance(value, (list, tuple)):
        return [value]
    found: list[Any] = []
    for one in cast("Iterable[Any]", value):
        found += answers_in(one, several=True) if isinstance(one, (dict, list, tuple)) or one is None else [one]
    return found


def _is_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in cast("list[Any]", value))


def _written(text: str) -> Any:
    """Parse text in brackets as JSON, Python or numpy write it; return ``_NO_VALUE`` if it is none of these."""
    text = _ARRAY.sub(r"\1", text.strip())
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return _NO_VALUE
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _python(text)
    known = not isinstance(found, dict) or bool({"value", "text", "string"} & set(cast("dict[str, Any]", found)))
    return found if known else _NO_VALUE


def _python(text: str) -> Any:
    try:
        found = ast.literal_eval(_with_commas(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return _NO_VALUE
    return found if isinstance(found, (list, dict)) else _NO_VALUE


def _with_commas(text: str) -> str:
    """Add the commas that numpy leaves out between strings: Python would read ``['one' 'two']`` as one string."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    ends: list[int] = []
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT):
            continue
        if before is not None and before.type == token.type == tokenize.STRING:
            ends.append(starts[before.end[0] - 1] + before.end[1])
        before = token
    for end in reversed(ends):
        text = f"{text[:end]},{text[end:]}"
    return text
