"""List the laboratory's tasks: each is small and shows one thing that estimators get right or wrong.

To add your own, write a :class:`Process` like these (``mtgrpo lab --process my_file.py:MY_PROCESS``).
"""

from __future__ import annotations

from verl_mtgrpo.lab.process import Action, Process


def _answer(right: float, *, tokens: int = 1) -> list[Action]:
    """Return the two answers; ``right`` is the logit of the right one, and the wrong one has 0."""
    return [Action("right", right, reward=1.0, tokens=tokens), Action("wrong", 0.0, tokens=tokens)]


TWO_TURNS = Process(
    "two turns",
    "Search well or badly, then answer. Every rollout has two turns: the paper's setting.",
    start="question",
    states={
        "question": [Action("good query", -0.5, 0.7, "found"), Action("bad query", 0.5, 0.2, "not found")],
        "found": _answer(0.5),
        "not found": _answer(-2.0),
    },
)

STOPPING = Process(
    "stopping",
    "Answer now or search once more, up to three times; every search is paid 0.2, so rewards have a mean.",
    start="turn 1",
    states={f"turn {k}": [Action("search", 0.3, 0.2, f"turn {k + 1}"), *_answer(0.4 * k - 1.0)] for k in (1, 2, 3)}
    | {"turn 4": _answer(0.6)},
)

USELESS_TURN = Process(
    "useless turn",
    "The middle turn changes nothing and earns nothing.",
    start="question",
    states={
        "question": [Action("good query", -0.5, 0.5, "idle found"), Action("bad query", 0.5, 0.0, "idle not found")],
        "idle found": [Action("a", 0.3, 0.0, "found"), Action("b", 0.0, 0.0, "found")],
        "idle not found": [Action("a", 0.3, 0.0, "not found"), Action("b", 0.0, 0.0, "not found")],
        "found": _answer(0.5),
        "not found": _answer(-2.0),
    },
)

DELAYED = Process(
    "delayed effect",
    "The first turn earns nothing itself; whether it was good shows only in the outcome two turns later.",
    start="plan",
    states={
        "plan": [Action("good plan", -0.5, 0.0, "search after good"), Action("bad plan", 0.5, 0.0, "search after bad")],
        "search after good": [Action("hit", 0.0, 0.5, "good"), Action("miss", 0.0, 0.0, "good")],
        "search after bad": [Action("hit", 0.0, 0.5, "bad"), Action("miss", 0.0, 0.0, "bad")],
        "good": _answer(1.0),
        "bad": _answer(-2.0),
    },
)

LENGTHS = Process(
    "unequal lengths",
    "As two turns, but bad queries and wrong answers are long: estimators that count tokens see them more.",
    start="question",
    states={
        "question": [Action("good", -0.5, 0.7, "found", tokens=2), Action("bad", 0.5, 0.2, "not found", tokens=9)],
        "found": [Action("right", 0.5, 1.0, tokens=2), Action("wrong", 0.0, 0.0, tokens=12)],
        "not found": [Action("right", -2.0, 1.0, tokens=2), Action("wrong", 0.0, 0.0, tokens=12)],
    },
)

PROCESSES = (TWO_TURNS, STOPPING, USELESS_TURN, DELAYED, LENGTHS)
