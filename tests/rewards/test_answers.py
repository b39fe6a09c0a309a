"""SQuAD's normal form and the measures on it, with values from its rules."""

from __future__ import annotations

import pytest

from verl_mtgrpo.rewards.answers import contains, exact_match, f1, normalize


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("a cat, an owl and the dog", "cat owl and dog"),
        ("Theatre", "theatre"),  # an article only as a word
        ("U.S.A.", "usa"),
        ("3,000.5", "30005"),
        ("Malmö", "malmö"),
        ("北京", "北京"),
        ("«naïve»", "«naïve»"),  # only ASCII punctuation goes
        ("", ""),
        (" \n\t", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("the Eiffel Tower", ["Eiffel tower."], True),
        ("Eiffel", ["Eiffel Tower"], False),
        ("Rome", ["Paris", "rome"], True),
        (None, ["x"], False),
        ("", ["x"], False),
        ("the", ["a"], False),  # both normalise to nothing
        ("x" * 100_000, ["x"], False),
    ],
)
def test_exact_match(answer, accepted, expected):
    assert exact_match(answer, accepted) is expected


@pytest.mark.parametrize(
    ("text", "accepted", "expected"),
    [
        ("It was in The Hague, 1899.", ["the hague"], True),
        ("partly", ["art"], True),  # as a substring, as documented
        ("1978", ["7"], False),  # a short one as a whole word
        ("中国北京市", ["北京"], True),
        ("nothing", ["."], False),
        (None, ["x"], False),
    ],
)
def test_contains(text, accepted, expected):
    assert contains(text, accepted) is expected


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("Barack Obama", ["Barack Hussein Obama"], 0.8),  # 2 of 2 and 2 of 3 words: 2·2/(2+3)
        ("the cat", ["cat"], 1.0),
        ("no no no", ["no"], 0.5),  # one of three, one of one: 2·1/(3+1)
        ("a b c", ["x", "b"], 2 / 3),  # "a" is an article: b, c
        ("dog", ["cat"], 0.0),
        ("", ["cat"], 0.0),
        (None, ["cat"], 0.0),
    ],
)
def test_f1(answer, accepted, expected):
    assert f1(answer, accepted) == pytest.approx(expected)
