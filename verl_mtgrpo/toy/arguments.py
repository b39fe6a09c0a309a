"""Make up arguments for a tool from its schema."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

_EXAMPLE = re.compile(r"(?:for example|e\.g\.|such as)[,:]?\s+(.+)", re.IGNORECASE | re.DOTALL)
_NUMBERS = (0, 20)


def sample_arguments(schema: Mapping[str, Any], words: Sequence[str], rng: random.Random) -> dict[str, Any]:
    """Return arguments that fit a tool's schema: the required ones, and others now and then.

    Args:
        schema: The tool as OpenAI's API describes it, ``{"function": {"name": …, "parameters": {…}}}``.
        words: What a text may be made of, if the schema has no example: the words of a question.
        rng: Where chance comes from.
    """
    parameters = schema.get("function", schema).get("parameters") or {}
    required = parameters.get("required") or []
    properties: Mapping[str, Any] = parameters.get("properties") or {}
    chosen = [name for name in properties if name in required or rng.random() < 0.3]
    return {name: sample_value(properties[name], words, rng) for name in chosen}


def sample_value(schema: Mapping[str, Any], words: Sequence[str], rng: random.Random, depth: int = 0) -> Any:
    """Return a value of a JSON schema: one of its examples if there are any."""
    if known := examples(schema):
        return rng.choice(known)
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = next((one for one in cast("list[str]", kind) if one != "null"), "string")
    if kind in ("integer", "number"):
        low = schema.get("minimum", _NUMBERS[0])
        high = schema.get("maximum", max(low, _NUMBERS[1]))
        return rng.randint(int(low), int(high)) if kind == "integer" else round(rng.uniform(low, high), 1)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        inside = schema.get("items") or {}
        return [sample_value(inside, words, rng, depth + 1) for _ in range(rng.randint(1, 2))] if depth < 3 else []
    if kind == "object":
        fields: Mapping[str, Any] = schema.get("properties") or {}
        return {name: sample_value(one, words, rng, depth + 1) for name, one in fields.items()} if depth < 3 else {}
    start = rng.randrange(max(1, len(words) - 2))
    return " ".join(words[start : start + rng.randint(1, 3)]) or "it"


def examples(schema: Mapping[str, Any]) -> list[Any]:
    """Return the values that a schema names itself: enum, examples, default, or "for example …" in its description."""
    for key in ("enum", "examples"):
        if schema.get(key):
            return list(schema[key])
    if schema.get("default") is not None:
        return [schema["default"]]
    found = _EXAMPLE.search(str(schema.get("description") or ""))
    if found and schema.get("type", "string") == "string":
        return [_first_sentence(found[1])]
    return []


def _first_sentence(text: str) -> str:
    """Return the example without the end of the sentence, a bracket that it stands in, and quotes around it."""
    sentence = re.split(r"\.(?:\s|$)|\n\s*\n", text.strip(), maxsplit=1)[0]
    example = " ".join(sentence.split())
    if example.count(")") > example.count("("):
        example = example[: example.rindex(")")]
    return example[1:-1] if len(example) > 1 and example[0] == example[-1] and example[0] in "\"'`" else example
