"""Small made data in the form that verl writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_mtgrpo.passages import Passage
from verl_mtgrpo.rewards.transcript import ToolCall, Transcript, Turn


def train_row(step: int, **values: float) -> dict[str, Any]:
    """One line of verl's file logger in training; ``__`` in a name stands for ``/``."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return {"step": step, "data": {"timing_s/step": 2.0, "actor/lr": 1e-3, **named}}


def validation_data(source: str, n: int, **values: float) -> dict[str, float]:
    """verl's names for validation means."""
    return {f"val-aux/{source}/{name.replace('__', '/')}/mean@{n}": value for name, value in values.items()}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def transcript(answer: str, *, searches: Sequence[str] = ()) -> Transcript:
    """A rollout that searches, then answers."""
    turns = []
    position = 0
    for query in searches:
        document = Passage(id="7", title="Orrin", text=f"{answer} is a river.", score=3.2)
        call = ToolCall("search", json.dumps({"query": query}), f"Doc 1 (Title: Orrin) {answer} is a river.",
                        documents=(document,))  # fmt: skip
        turns.append(Turn(f"<tool_call>{query}</tool_call>", (position, position + 3), (call,)))
        position += 9
    turns.append(Turn(f"<answer>{answer}</answer>", (position, position + 2)))
    prompt = ({"role": "system", "content": "Search."}, {"role": "user", "content": "Which river runs by Orrin?"})
    return Transcript(turns=tuple(turns), end_reason="answered", prompt=prompt, max_turns=3)


def dump_row(prompt: str, session: int, rollout: Transcript, rewards: Sequence[float], **more: Any) -> dict[str, Any]:
    """One line of a validation dump."""
    return {
        "uid": f"{prompt}_{session}_0",
        "gts": {"target": ["Vel", "the Vel"]},
        "score": sum(rewards),
        "transcript": json.dumps(rollout.to_dict()),
        "turn_rewards": json.dumps(list(rewards)),
        "tool/used": float(len(rollout.turns) > 1),
        "outcome/em": rewards[-1] if rewards else 0.0,
        "turn/2/reward": None,
        **more,
    }


def training_row(
    prompt: str,
    session: int,
    rollout: Transcript,
    rewards: Sequence[float],
    advantages: Sequence[float],
    *,
    step: int = 1,
    estimator: str = "mt_grpo",
    **more: Any,
) -> dict[str, Any]:
    """One line of a training dump, as our trainers write it."""
    return {
        **dump_row(prompt, session, rollout, rewards),
        "step": step,
        "turn_advantages": json.dumps(list(advantages)),
        "turn_credited": json.dumps(list(rewards)),
        "estimator": estimator,
        "estimator_settings": json.dumps({"discount": 1.0}),
        **more,
    }


CALL = '<tool_call>{"name": "search", "arguments": {"query": "Orrin"}}</tool_call>'


def rollout_of(answer: str | None, *calls: ToolCall, call_text: str = CALL, **more: Any) -> Transcript:
    """Make one turn per call, then one that answers (None: it writes something without an answer)."""
    turns = [Turn(call_text, (9 * n, 9 * n + 3), (call,)) for n, call in enumerate(calls)]
    said = "I do not know." if answer is None else f"So <answer>{answer}</answer>"
    last = Turn(said, (9 * len(calls), 9 * len(calls) + 2))
    return Transcript(turns=(*turns, last), end_reason="answered", **more)


def asked(question: str, said: Transcript) -> Transcript:
    """The same rollout of another question."""
    return Transcript(said.turns, said.end_reason, ({"role": "user", "content": question},), said.max_turns)
