from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_mtgrpo.data.corpus import read_corpus
from verl_mtgrpo.errors import ConfigError, RetrievalBadAnswer, RetrievalError, RetrievalRejected
from verl_mtgrpo.retrieval import Passage, wire

CONTENTS = '"Velm"\nA harbour town.'


def decode(result: Any, queries: int = 1, k: int = 3) -> list[list[Passage]]:
    return wire.decode_answer(json.dumps({"result": result}).encode(), queries=queries, k=k)


@pytest.mark.parametrize(
    "hit, expected",
    [
        ({"document": {"id": "7", "contents": CONTENTS}, "score": 1.5}, ("7", "Velm", "A harbour town.", 1.5)),
        ({"document": {"id": 7, "contents": CONTENTS}, "score": 2}, ("7", "Velm", "A harbour town.", 2.0)),
        ({"document": {"id": "7", "contents": CONTENTS}}, ("7", "Velm", "A harbour town.", 0.0)),
        ({"document": {"id": "7", "contents": CONTENTS}, "score": None}, ("7", "Velm", "A harbour town.", 0.0)),
        ({"id": "7", "contents": CONTENTS}, ("7", "Velm", "A harbour town.", 0.0)),
        ({"id": "7", "contents": CONTENTS, "score": -0.5}, ("7", "Velm", "A harbour town.", -0.5)),
        ({"id": "7", "contents": "Velm\nA harbour town."}, ("7", "Velm", "A harbour town.", 0.0)),
        ({"id": "7", "contents": "Velm \nTwo\nlines."}, ("7", "Velm", "Two\nlines.", 0.0)),
        ({"id": "7", "contents": '"A "b" c"\nText'}, ("7", 'A "b" c', "Text", 0.0)),
        ({"id": "7", "contents": '"A" song\nText'}, ("7", '"A" song', "Text", 0.0)),
        ({"id": "7", "contents": '""\nText'}, ("7", "", "Text", 0.0)),
        ({"id": "7", "contents": "No title."}, ("7", "", "No title.", 0.0)),
        ({"id": "7", "title": "Velm", "contents": "No first line."}, ("7", "Velm", "No first line.", 0.0)),
        ({"id": "7", "contents": ""}, ("7", "", "", 0.0)),
        ({"id": "7", "title": "Velm", "text": "A harbour."}, ("7", "Velm", "A harbour.", 0.0)),
        ({"id": "7", "title": None, "text": "A harbour."}, ("7", "", "A harbour.", 0.0)),
        ({"document": {"id": "7", "text": "A\nharbour."}, "score": 1}, ("7", "", "A\nharbour.", 1.0)),
        ({"id": "7", "title": "T", "text": "x", "contents": "T\ny", "url": "z"}, ("7", "T", "x", 0.0)),
        ({"id": "\ud83d", "contents": "half \ud83d\npair \udc00"}, ("?", "half ?", "pair ?", 0.0)),
    ],
)
def test_every_layout_of_a_hit(hit: dict[str, Any], expected: tuple[str, str, str, float]):
    assert decode([[hit]]) == [[Passage(*expected)]]


def test_a_missing_id_is_the_one_that_the_corpus_reader_makes(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text(json.dumps({"contents": CONTENTS}) + "\n")
    (passage,) = read_corpus(file)
    ((hit,),) = decode([[{"document": {"contents": CONTENTS}, "score": 1.0}]])
    assert (hit.id, hit.title, hit.text) == (passage.id, passage.title, passage.text)
    assert hit.id != decode([[{"contents": CONTENTS + "!"}]])[0][0].id


def test_fewer_and_more_hits_than_asked_for():
    hits = [{"id": str(number), "contents": "x"} for number in range(5)]
    found = decode([hits, [], hits[:1]], queries=3, k=3)
    assert [[hit.id for hit in passages] for passages in found] == [["0", "1", "2"], [], ["0"]]


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", r"0 bytes that are not JSON"),
        (b"<html>log in</html>", r"19 bytes that are not JSON: '<html>log in</html>', expected .*check that the"),
        (b'{"result": [[{"docu', "not JSON"),
        (b'{"result": [["\xff"]]}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"null", "not JSON"),
        (b"[]", "without a list 'result'"),
        (b'{"detail": "Internal error"}', "without a list 'result': .*Internal error"),
        (b'{"result": null}', "without a list 'result'"),
        (b'{"result": {"0": []}}', "without a list 'result'"),
        (b'{"result": []}', "0 result lists for 1 queries"),
        (b'{"result": [[], []]}', "2 result lists for 1 queries"),
        (b'{"result": [{"id": "1", "contents": "x"}]}', r"result\[0\] is an object, not a list"),
        (b'{"result": [null]}', r"result\[0\] is missing or null"),
        (b'{"result": [["text"]]}', r"result\[0\]\[0\] is a string, not a document"),
        (b'{"result": [[{"document": "text"}]]}', r"\[0\]\.document is a string"),
        (b'{"result": [[{"document": null}]]}', r"\.document is missing or null"),
        (b'{"result": [[{"doc": {"contents": "x"}}]]}', r"neither contents nor text, but \['doc'\]"),
        (b'{"result": [[{"id": "1", "contents": 5}]]}', "neither contents nor text"),
        (b'{"result": [[{"id": ["1"], "contents": "x"}]]}', "id is a list"),
        (b'{"result": [[{"id": "1", "title": 3, "text": "x"}]]}', "title is a number"),
        (b'{"result": [[{"contents": "x", "score": "high"}]]}', "score is 'high', not a finite number"),
        (b'{"result": [[{"contents": "x", "score": true}]]}', "score is 'True'"),
        (b'{"result": [[{"contents": "x", "score": NaN}]]}', "score is 'nan'"),
        (b'{"result": [[{"contents": "x", "score": 1' + b"0" * 400 + b"}]]}", "not a finite number"),
    ],
)
def test_what_is_no_answer(body: bytes, message: str):
    with pytest.raises(RetrievalBadAnswer, match=message):
        wire.decode_answer(body, queries=1, k=3)


def test_a_request_on_the_wire():
    body = wire.encode_request(["Who?", "half \ud83d pair", "😀\x00"], 5)
    assert json.loads(body) == {"queries": ["Who?", "half ? pair", "😀\x00"], "topk": 5, "return_scores": True}


def test_requests_that_cannot_be_sent():
    with pytest.raises(RetrievalError, match=r"one string .*expected a list"):
        wire.encode_request("who", 3)
    with pytest.raises(RetrievalError, match=r"query is a NoneType .*expected a string"):
        wire.encode_request([None], 3)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="k is 0, expected at least 1"):
        wire.encode_request(["who"], 0)


@pytest.mark.parametrize(
    "body, expected",
    [
        ({"queries": ["a", "b"], "topk": 2, "return_scores": True}, (["a", "b"], 2, True)),
        ({"queries": ["a"], "topk": None}, (["a"], None, False)),
        ({"queries": []}, ([], None, False)),
        ({"queries": ["a"], "index": "../../etc/passwd"}, (["a"], None, False)),
        ({"queries": ["\ud800 a"]}, (["? a"], None, False)),
    ],
)
def test_requests_are_read(body: dict[str, Any], expected: tuple[list[str], int | None, bool]):
    asked = wire.decode_request(json.dumps(body).encode())
    assert (asked.queries, asked.topk, asked.return_scores) == expected


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "not JSON in UTF-8, expected an object; send"),
        (b'{"queries": ["\xff"]}', "not JSON in UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'["a"]', "the body is a list"),
        (b"{}", "queries is missing or null, expected a list of strings"),
        (b'{"queries": "a"}', "queries is a string"),
        (b'{"queries": ["a", 3]}', r"queries\[1\] is a number"),
        (b'{"queries": ["a", null]}', r"queries\[1\] is missing or null"),
        (b'{"queries": [], "topk": 0}', "topk is '0', expected a whole number of at least 1, or null"),
        (b'{"queries": [], "topk": "3"}', "topk is '3'"),
        (b'{"queries": [], "topk": 1.5}', "topk is '1.5'"),
        (b'{"queries": [], "topk": true}', "topk is 'True'"),
        (b'{"queries": [], "return_scores": "yes"}', "return_scores is 'yes', expected true or false"),
    ],
)
def test_what_is_no_request(body: bytes, message: str):
    with pytest.raises(RetrievalRejected, match=message):
        wire.decode_request(body)


def test_an_answer_on_the_wire():
    passages = [Passage("7", "Velm", "A town.", 1.5), Passage("8", "", "Title\nlike.", 0.5)]
    documents = [{"id": "7", "contents": '"Velm"\nA town.'}, {"id": "8", "contents": '""\nTitle\nlike.'}]
    with_scores = [
        {"document": document, "score": score} for document, score in zip(documents, (1.5, 0.5), strict=True)
    ]
    assert json.loads(wire.encode_answer([passages, []], return_scores=True)) == {"result": [with_scores, []]}
    assert json.loads(wire.encode_answer([[], passages, passages], return_scores=False)) == {
        "result": [[], documents, documents]
    }


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    st.lists(
        st.builds(
            Passage,
            id=text,
            title=text.filter(lambda title: "\n" not in title),
            text=text,
            score=st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=3,
    )
)
def test_a_passage_comes_back_as_it_was(passages: list[Passage]):
    body = wire.encode_answer([passages], return_scores=True)
    assert wire.decode_answer(body, queries=1, k=3) == [passages]


def test_a_line_break_in_a_title_becomes_a_space():
    body = wire.encode_answer([[Passage("1", "a\r\nb\nc", "text", 1.0)]], return_scores=True)
    assert wire.decode_answer(body, queries=1, k=1)[0][0].title == "a b c"
