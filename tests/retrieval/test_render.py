from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval import NOTHING_FOUND, Passage, render_passages

TWO = [Passage("a", "Velm", "A town by the sea."), Passage("b", "Dravik", "A town in the hills.")]


def test_default_template():
    assert render_passages(TWO) == "Doc 1 (Title: Velm) A town by the sea.\nDoc 2 (Title: Dravik) A town in the hills."


def test_own_template():
    text = render_passages(TWO, template="[{rank}] {text} -- {title}{{}}")
    assert text == "[1] A town by the sea. -- Velm{}\n[2] A town in the hills. -- Dravik{}"


def test_braces_in_a_passage_are_text():
    odd = [Passage("a", "{rank}", "{text} {0} {x.__class__}")]
    assert render_passages(odd) == "Doc 1 (Title: {rank}) {text} {0} {x.__class__}"


def test_nothing_found_is_said_and_never_cut():
    assert render_passages([], max_chars=5) == NOTHING_FOUND


@pytest.mark.parametrize(
    "max_chars, expected",
    [
        (18, "A town by the sea."),
        (17, "A town by the ..."),
        (16, "A town by ..."),
        (14, "A town by ..."),
        (13, "A town by ..."),
        (12, "A town ..."),
        (3, "A t"),
    ],
)
def test_cut_after_a_whole_word(max_chars: int, expected: str):
    assert render_passages(TWO[:1], template="{text}", max_chars=max_chars) == expected


def test_one_long_word_is_cut_inside():
    assert render_passages([Passage("a", "", "x" * 50)], template="{text}", max_chars=10) == "xxxxxx ..."


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=4), max_chars=st.integers(1, 80))
def test_never_longer_than_asked(texts: list[str], max_chars: int):
    passages = [Passage(str(number), "t", text) for number, text in enumerate(texts)]
    whole = render_passages(passages)
    cut = render_passages(passages, max_chars=max_chars)
    assert len(cut) <= max_chars
    assert cut == whole or whole.startswith(cut.removesuffix(" ..."))


@pytest.mark.parametrize(
    "template, message",
    [
        ("{rank} {title}", r"does not show the \{text\}"),
        ("{text} {score}", r"unknown field \{score\}"),
        ("{}", r"unknown field \{\}"),
        ("{text.__class__}", r"unknown field \{text.__class__\}"),
        ("{text", "not valid"),
        ("{text!r}", "with ':' or '!'"),
        ("{text:>99}", "with ':' or '!'"),
        (7, "is a int, expected a string"),
    ],
)
def test_bad_templates(template: str, message: str):
    with pytest.raises(ConfigError, match=message):
        render_passages([], template=template)


def test_bad_max_chars():
    with pytest.raises(ConfigError, match="max_chars is 0, expected at least 1, or null"):
        render_passages(TWO, max_chars=0)
