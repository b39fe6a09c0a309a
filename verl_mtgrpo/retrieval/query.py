"""Queries: clean what a model wrote before it is searched for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from verl_mtgrpo.errors import ConfigError, RetrievalError
from verl_mtgrpo.retrieval.content import clean_text

MAX_CHARS = 2_000
"""A longer query is cut to this many characters: the rest rarely adds to what to look for."""

# Control characters, half surrogate pairs, and format characters such as zero-width spaces and text direction marks.
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]+")


def clean_query(text: str) -> str:
    """Return the query in NFC, without invisible characters, with single spaces, at most 2,000 characters long.

    Nothing else changes: case, punctuation and words are left to the search engine. May be empty.
    """
    visible = _INVISIBLE.sub(" ", text[: 4 * MAX_CHARS])
    return " ".join(unicodedata.normalize("NFC", visible).split())[:MAX_CHARS].rstrip()


def check_queries(queries: Sequence[str], k: int) -> list[str]:
    """Return the queries as UTF-8 can encode them.

    Raises:
        RetrievalError: ``queries`` is one string, or holds something other than strings.
        ConfigError: ``k`` is less than 1.
    """
    if isinstance(queries, str):
        raise RetrievalError(f"queries is one string ({queries[:40]!r})", expected="a list of strings")
    if k < 1:
        raise ConfigError(f"k is {k}", expected="at least 1")
    return [clean_text(query, "query") for query in queries]


def same_search(text: str) -> str:
    """Return a key, equal for queries that ask the same: the clean query without case and outer punctuation."""
    return clean_query(text).casefold().strip(" \t.,;:!?\"'")
