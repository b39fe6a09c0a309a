"""The parts of examples/chaos: malformed completions through the real agent loop, and books that do not agree."""

from __future__ import annotations

import copy
import json
import pickle
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl")

from tests.agent_loops import run, search_tool, transcript_of
from verl_mtgrpo.integration.rollout.transcripts import pack
from verl_mtgrpo.rewards import load_preset

pytestmark = pytest.mark.compose

CHAOS = Path(__file__).parents[2] / "examples" / "chaos"
SESSIONS = 120


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(CHAOS))
    yield
    for name in ("malformed", "accounts", "faults"):
        sys.modules.pop(name, None)


def test_no_malformed_completion_breaks_a_rollout(config, tokenizer, index, chaos, tmp_path, monkeypatch):
    from malformed import KINDS, MalformedAgentLoop

    journal = tmp_path / "journal.jsonl"
    for name, value in {"JOURNAL": str(journal), "SEED": "0", "MALFORMED": "1.0"}.items():
        monkeypatch.setenv(f"CHAOS_{name}", value)
    tools, presets = [search_tool(index)], [load_preset("paper_v1"), load_preset("paper_v2")]
    turns = 0
    for session in range(SESSIONS):
        row = {"uid": "a", "global_steps": 1, "session_id": session, "index": 0}
        output = run(MalformedAgentLoop, config, tokenizer, tools, row=row, response_length=160, max_assistant_turns=3)
        transcript = transcript_of(output)
        turns += len(transcript.turns)
        assert len(output.response_ids) == len(output.response_mask) == len(output.response_logprobs)
        pack(output.extra_fields["transcript"])
        for preset in presets:
            rewards = preset(transcript, {"target": ["Oslo"]})
            assert len(rewards.turns) == len(transcript.turns)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert set(KINDS) == {line["malformed"] for line in lines if line["event"] == "generated"}, "each was tried"
    assert sum(line["event"] == "ended" for line in lines) == SESSIONS
    assert turns > SESSIONS, "some of them are calls that are answered, and the model goes on"


def test_the_server_can_be_copied_and_pickled(chaos):
    from malformed import MalformedServer

    server = MalformedServer(SimpleNamespace(model="m"), None, random.Random(0), 0.5, {"uid": "a"})
    for again in (copy.copy(server), copy.deepcopy(server), pickle.loads(pickle.dumps(server))):
        assert type(again) is MalformedServer and again.model == "m"


def start(*steps: int, **changes: float) -> Any:
    """A start in which a question of four rollouts is asked in each step; the third is dropped, the fourth fails."""
    from accounts import Start

    counts = {"asked": 4, "trained": 2, "dropped": 1, "alone": 0, "failed": 1, "filtered": 0, "repeated": 0, **changes}
    rows = {step: {f"rollouts_total/{name}": float(value) for name, value in counts.items()} for step in steps}
    begun = {step: Counter(f"{step}_{session}" for session in range(4)) for step in steps}
    ended = {step: Counter(f"{step}_{session}" for session in range(3)) for step in steps}
    return Start(rows=rows, begun=begun, ended=ended)


def test_books_that_agree_are_summed_up(chaos):
    from accounts import check

    first, second = start(1, 2, 3), start(3, 4)  # step 3 was trained again, and a stop cut the first start's step 4 off
    first.begun[4] = Counter({"4_0": 1, "4_1": 1})
    assert check([first, second], 4) == {
        **{"asked": 16, "trained": 8, "dropped": 4, "alone": 0, "failed": 4, "filtered": 0, "repeated": 0},
        **{"undone": 4, "cut off": 2, "begun": 22},
    }


def lost(first: Any) -> None:
    first.begun[2]["2_9"] += 1  # a rollout that no metric knows


def trained_without_an_end(first: Any) -> None:
    first.ended[2] = Counter(["2_0"])


def asked_again_in_silence(first: Any) -> None:
    first.begun[2]["2_0"] += 1


@pytest.mark.parametrize("spoil", [lost, trained_without_an_end, asked_again_in_silence])
def test_books_that_do_not_agree_are_refused(chaos, spoil):
    from accounts import check

    first = start(1, 2)
    check([first], 2)
    spoil(first)
    with pytest.raises(AssertionError):
        check([first], 2)


def test_sums_that_do_not_add_up_and_steps_that_are_missing_are_refused(chaos):
    from accounts import check

    with pytest.raises(AssertionError):
        check([start(1, failed=0)], 1)
    with pytest.raises(AssertionError):
        check([start(1, 3)], 3)
    assert replace(start(1)).cut_off() == []
