"""A group of outputs of roles, as our trainers dump it."""

from __future__ import annotations

from typing import Any

from tests.report.made import training_row
from verl_mtgrpo.rewards.transcript import Transcript, Turn

QUESTION = {"role": "user", "content": "Which river runs by Orrin?"}


def said(*texts: str, prompt: str) -> Transcript:
    turns = tuple(Turn(text, (2 * k, 2 * k + 1)) for k, text in enumerate(texts))
    return Transcript(turns, "answered", prompt=({"role": "system", "content": prompt}, QUESTION))


def role_rows(prompt: str = "roles", **changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Two queries, the first read by two answers, the second by one; the second answer is lost.

    Args:
        prompt: Name of the group.
        changes: ``row2={...}``: further columns of a row.
    """
    outputs = [
        ("rewriter", "", said("river Orrin", prompt="You rewrite."), [-0.25], [0.5]),
        ("rewriter", "", said("Orrin", prompt="You rewrite."), [0.0], [-0.5]),
        ("answerer", "0:0", said("<answer>Vel</answer>", prompt="You answer."), [1.0], [1.2]),
        ("answerer", "0:0", said("<answer>Mar</answer>", prompt="You answer."), [0.0], [0.0]),
        ("answerer", "0:1", said("<answer>Mar</answer>", prompt="You answer."), [0.0], [-1.2]),
    ]
    rows = [
        training_row(prompt, 0, one, paid, credit, step=3, estimator="mhgpo", estimator_settings="{}")
        for _, _, one, paid, credit in outputs
    ]
    for number, (row, (role, fed_by, *_)) in enumerate(zip(rows, outputs, strict=True)):
        row |= {"uid": f"{prompt}_0_{number}", "role": role, "output_id": f"0:{number}", "fed_by": fed_by}
        row |= {"conversation": "", "learnt": True, **changes.get(f"row{number}", {})}
    rows[3] |= {"outcome/dropped": 1.0, "dropped_reason": "no judge"}
    return rows


def conversation_rows(prompt: str = "talk") -> list[dict[str, Any]]:
    """One conversation, the planner frozen."""
    sides = [
        ("meta", said("plan a", "plan b DONE", prompt="You plan."), [0.0, 1.0]),
        ("reasoner", said("step a", "<answer>Vel</answer>", prompt="You act."), [0.0, 1.0]),
    ]
    rows = []
    for number, (role, one, paid) in enumerate(sides):
        row = training_row(prompt, 0, one, paid, [0.0, 0.0], step=3, estimator="mhgpo", estimator_settings="{}")
        row |= {"uid": f"{prompt}_0_{number}", "role": role, "output_id": f"0:{number}", "fed_by": ""}
        rows.append({**row, "conversation": "0:0", "learnt": role != "meta"})
    return rows


HOSTILE: dict[str, dict[str, dict[str, Any]]] = {
    "a circle": {"row0": {"fed_by": "0:2"}},
    "itself": {"row0": {"fed_by": "0:0"}},
    "nobody": {"row2": {"fed_by": "0:9/__proto__/constructor"}},
    "one name for two": {"row1": {"output_id": "0:0"}},
    "markup": {"row0": {"role": "<img src=x onerror=alert(1)>"}},
    "no text": {"row0": {"role": {"a": 1}, "fed_by": ["0:1"], "output_id": 7, "conversation": {"x": []}}},
    "property names": {"row0": {"role": "__proto__"}, "row2": {"role": "constructor"}},
}
"""What broken or hostile dumps may say."""
