r"""The wire format of Search-R1's retrieval server, in both directions; pure functions, no network.

Request ``POST /retrieve``::

    {"queries": ["words", ...], "topk": 3 or null, "return_scores": true}

Answer, one list for each query in order, best hit first::

    {"result": [[{"document": {"id": "7", "contents": "\"Title\"\ntext"}, "score": 1.5}, ...], ...]}

The layout is described by PeterGriffinJin/Search-R1, ``search_r1/search/retrieval_server.py``. Servers that
call themselves compatible differ in details, so :func:`decode_answer` also takes a document without the
``document`` wrapper (as ``return_scores=false`` sends it), missing ids and scores, titles without quotes,
``{title, text}`` documents, and fewer or more hits than requested. Anything else is an error: an answer that
is only partly understood would look like "found nothing".
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from verl_mtgrpo.errors import RetrievalBadAnswer, RetrievalRejected
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.query import check_queries
from verl_mtgrpo.retrieval.types import content_id, split_contents
from verl_mtgrpo.text import encodable

PATH = "/retrieve"

_REQUEST = '{"queries": ["words"], "topk": 3, "return_scores": true}'
_ANSWER = '{"result": [[{"document": {"id", "contents"}, "score"}]]}'
_SHOWN_CHARS = 120


@dataclass(frozen=True)
class Request:
    """A client's request.

    Attributes:
        queries: The queries, in order; may be empty.
        topk: Passages per query, at least 1; None for the server's default.
        return_scores: True for wrapped documents with scores, False for bare documents.
    """

    queries: list[str]
    topk: int | None
    return_scores: bool


# ---- the client's side


def encode_request(queries: Sequence[str], k: int) -> bytes:
    """Return the body that asks for ``k`` passages for each query.

    Scores are always requested: without them the reference server answers only the first query.

    Raises:
        RetrievalError, ConfigError: as :func:`~.query.check_queries`.
    """
    return json.dumps({"queries": check_queries(queries, k), "topk": k, "return_scores": True}).encode()


def decode_answer(body: bytes, *, queries: int, k: int) -> list[list[Passage]]:
    """Return the passages in a server's answer: one list per query, with at most ``k``.

    A document without an id gets the one that ``mtgrpo index`` makes from its title and text.

    Args:
        body: The answer as it came.
        queries: How many queries were sent.
        k: How many passages were requested; any more that the server sends are left out.

    Raises:
        RetrievalBadAnswer: The body is not an answer to that request.
    """
    answer = _load(body)
    if answer is None:
        raise _bad(f"{len(body)} bytes that are not JSON: {_shown(body)}")
    result = cast("dict[str, Any]", answer).get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list):
        raise _bad(f"JSON without a list 'result': {_shown(body)}")
    lists = cast("list[Any]", result)
    if len(lists) != queries:
        raise _bad(f"{len(lists)} result lists for {queries} queries")
    return [_decode_hits(hits, f"result[{number}]")[:k] for number, hits in enumerate(lists)]


def _decode_hits(hits: Any, where: str) -> list[Passage]:
    if not isinstance(hits, list):
        raise _bad(f"{where} is {_kind(hits)}, not a list of hits")
    return [_decode_hit(hit, f"{where}[{rank}]") for rank, hit in enumerate(cast("list[Any]", hits))]


def _decode_hit(hit: Any, where: str) -> Passage:
    if not isinstance(hit, dict):
        raise _bad(f"{where} is {_kind(hit)}, not a document")
    fields = cast("dict[str, Any]", hit)
    document = fields.get("document", fields)
    if not isinstance(document, dict):
        raise _bad(f"{where}.document is {_kind(document)}, not an object")
    title, text = _title_and_text(cast("dict[str, Any]", document), where)
    id = _decode_id(cast("dict[str, Any]", document).get("id"), where)
    score = _decode_score(fields.get("score"), where)
    return Passage(id=content_id(title, text) if id is None else id, title=title, text=text, score=score)


def _title_and_text(document: dict[str, Any], where: str) -> tuple[str, str]:
    title = document.get("title")
    if title is not None and not isinstance(title, str):
        raise _bad(f"{where}: title is {_kind(title)}, not a string")
    if isinstance(document.get("text"), str):
        return encodable(title or ""), encodable(document["text"])
    contents = document.get("contents")
    if not isinstance(contents, str):
        raise _bad(f"{where}: a document with neither contents nor text, but {sorted(document)[:6]}")
    first, text = split_contents(contents)
    return encodable(first if "\n" in contents else title or ""), encodable(text)


def _decode_id(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _bad(f"{where}: id is {_kind(value)}, not a string or a whole number")
    return encodable(str(value))


def _decode_score(value: Any, where: str) -> float:
    if value is None:
        return 0.0
    if not isinstance(value, bool) and isinstance(value, (int, float)):
        with contextlib.suppress(OverflowError):  # a whole number of 400 digits
            if math.isfinite(score := float(value)):
                return score
    raise _bad(f"{where}: score is {str(value)[:40]!r}, not a finite number")


def _bad(what: str) -> RetrievalBadAnswer:
    return RetrievalBadAnswer(
        f"the search service sent {what}",
        expected=f"{_ANSWER} with one list for each query",
        fix="check that the address is that of a Search-R1 compatible server",
    )


# ---- the server's side


def decode_request(body: bytes) -> Request:
    """Return what a request asks for. Unknown fields are ignored; half surrogate pairs in queries become ``?``.

    Raises:
        RetrievalRejected: The body is not a request; the message says what to send instead.
    """
    request = _load(body)
    if not isinstance(request, dict):
        got = "not JSON in UTF-8" if request is None else _kind(request)
        raise RetrievalRejected(f"the body is {got}", expected="an object", fix=f"send {_REQUEST}")
    fields = cast("dict[str, Any]", request)
    queries = fields.get("queries")
    if not isinstance(queries, list):
        raise RetrievalRejected(f"queries is {_kind(queries)}", expected="a list of strings", fix=f"send {_REQUEST}")
    for number, query in enumerate(cast("list[Any]", queries)):
        if not isinstance(query, str):
            raise RetrievalRejected(f"queries[{number}] is {_kind(query)}", expected="a string", fix=f"send {_REQUEST}")
    topk = fields.get("topk")
    if topk is not None and (isinstance(topk, bool) or not isinstance(topk, int) or topk < 1):
        raise RetrievalRejected(f"topk is {str(topk)[:40]!r}", expected="a whole number of at least 1, or null")
    scores = fields.get("return_scores", False)
    if not isinstance(scores, bool):
        raise RetrievalRejected(f"return_scores is {str(scores)[:40]!r}", expected="true or false")
    return Request([encodable(query) for query in cast("list[str]", queries)], topk, scores)


def encode_answer(results: Sequence[Sequence[Passage]], *, return_scores: bool) -> bytes:
    """Return the answer with one list per query; bare documents if ``return_scores`` is False.

    The title is always in quotes on the first line of ``contents``, an empty one too, so that no line of
    the text is taken for it. A line break inside a title becomes a space.
    """
    lists: list[list[Any]] = []
    for passages in results:
        documents = [{"id": passage.id, "contents": _contents(passage)} for passage in passages]
        if return_scores:
            scored = zip(documents, passages, strict=True)
            lists.append([{"document": document, "score": passage.score} for document, passage in scored])
        else:
            lists.append(list(documents))
    return json.dumps({"result": lists}).encode()


def _contents(passage: Passage) -> str:
    title = passage.title.replace("\r\n", " ").replace("\n", " ")
    return f'"{title}"\n{passage.text}'


# ---- both sides


def _load(body: bytes) -> Any:
    """Return the JSON value of ``body``; None if it is not JSON (or null, which neither side may send)."""
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):  # RecursionError: a thousand opening brackets
        return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "missing or null"}
    return names.get(type(value), "a number")


def _shown(body: bytes) -> str:
    text = body[: 4 * _SHOWN_CHARS].decode("utf-8", "replace")
    return repr(text[:_SHOWN_CHARS] + ("…" if len(text) > _SHOWN_CHARS or len(body) > 4 * _SHOWN_CHARS else ""))
