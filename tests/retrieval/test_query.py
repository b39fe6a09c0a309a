from __future__ import annotations

import pytest

from verl_mtgrpo.retrieval.query import MAX_CHARS, clean_query, same_search


@pytest.mark.parametrize(
    ("written", "clean"),
    [
        ("Who built\n the  tower?", "Who built the tower?"),
        ("a\x00b\x1b[2J", "a b [2J"),
        ("\ud800half", "half"),
        ("zero\u200bwidth \u202eturned", "zero width turned"),
        ("Malmo\u0308", "Malmö"),
        ("北京 🗼", "北京 🗼"),
        ("tower AND (x OR y)", "tower AND (x OR y)"),
        (" \n\t ", ""),
        ("", ""),
    ],
)
def test_clean_query(written, clean):
    assert clean_query(written) == clean


def test_a_long_query_is_cut():
    assert len(clean_query("word " * 300_000)) <= MAX_CHARS


@pytest.mark.parametrize("other", ["the Tower", "THE TOWER?", ' "the  tower". ', "the\u200b tower"])
def test_the_same_search(other):
    assert same_search(other) == same_search("the tower")
    assert same_search("the tower of Pim") != same_search("the tower")
