"""examples/decide: the scorer, and what is counted where posterior and plain sampling are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_mtgrpo.own_code import load_file
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn

FOLDER = Path(__file__).parents[1] / "examples" / "decide"


def load(name):
    return load_file(FOLDER / f"{name}.py")


def row(question, answer, em, extra=None):
    turn = Turn(f"<answer>{answer}</answer>", (0, 10))
    text = json.dumps(Transcript((turn,), "answered").to_dict())
    more = {} if extra is None else {"decide/extra_tokens": extra}
    return {"question_id": question, "input": "", "transcript": text, "outcome/em": em, **more}


def test_the_scorer_wants_an_answer_that_was_found():
    score = load("scorer").supported
    call = ToolCall("search", "{}", result="It is in Oslo.")
    searched = Transcript((Turn("", (0, 1), (call,)),), "answered")
    said = [score(searched, Turn(f"<answer>{answer}</answer>", (2, 3))) for answer in ("Oslo", "Pim", "")]
    assert said == [1.0, 0.0, 0.0]
    assert score(searched, Turn("", (2, 3), (call,))) == 0.5
    assert score(Transcript((), "answered"), Turn("<answer>Oslo</answer>", (0, 1))) == 0.0


def test_equal_tokens_and_the_majority():
    run = load("run")
    plain = [row("q", answer, em) for answer, em in (("Oslo", 1.0), ("Pim", 0.0), ("Oslo", 1.0), ("Rome", 0.0))]
    plain += [row("r", answer, 0.0) for answer in ("a", "b", "a", "c")]
    posterior = [row("q", "Oslo", 1.0, 30.0), row("r", "b", 1.0, 10.0)]
    assert [run.tokens_of(one) for one in (plain[0], posterior[0])] == [10, 40]
    assert run.majority(plain, 3) == 0.5
    table = run.describe(plain, posterior, 4)
    assert "majority of 3 | 0.500 | 30" in table.replace("  ", " ")
    assert "posterior, k = 4 | 1.000 | 30" in table.replace("  ", " ")


def test_the_overrides_are_settings_that_exist():
    pytest.importorskip("omegaconf")
    from verl_mtgrpo.deciders.settings import DecideSettings

    names = [one.split("=")[0].rpartition(".")[2] for one in load("run").decided(4, 0.25)[1:]]
    assert set(names) <= set(DecideSettings.model_fields)
