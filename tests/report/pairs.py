"""A group of pairs of actions, as our trainers dump it."""

from __future__ import annotations

import json
from typing import Any

from tests.report.made import training_row
from tests.report.roles import said

ADVANTAGES = {"expert": 0.0425557, "own": -0.0425557}
"""By hand: β = .1, log ratios 2 and -1, so D = .3 and σ(-.3) = .4255575."""


def pair_rows(prompt: str = "pairs", **changes: dict[str, Any]) -> list[dict[str, Any]]:
    """A pair; a row in which the policy wrote what the expert wrote; and an action whose partner was lost.

    Args:
        prompt: Name of the group.
        changes: ``row2={...}``: further columns of a row.
    """
    actions = [
        ("0_0", "a", "expert", "go left", 2.0, ADVANTAGES["expert"]),
        ("0_1", "a", "own", "go right", -1.0, ADVANTAGES["own"]),
        ("1_0", "b", "equal", "go left", 0.5, 0.0),
        ("2_0", "c", "expert", "go left", 0.0, 0.0),
        ("2_1", "c", "own", "wait", 0.0, 0.0),
    ]
    rows = []
    for uid, pair, side, text, ratio, advantage in actions:
        row = training_row(prompt, 0, said(text, prompt="Act."), [0.0], [advantage], step=3, estimator="pair_dpo")
        more = {"uid": f"{prompt}_{uid}", "pair_id": pair, "pair_side": side, "turn_log_ratio": json.dumps([ratio])}
        rows.append(row | more | {"estimator_settings": json.dumps({"beta": 0.1})} | changes.get(f"row{len(rows)}", {}))
    rows[3] |= {"outcome/dropped": 1.0, "dropped_reason": "no judge"}
    return rows


HOSTILE: dict[str, dict[str, dict[str, Any]]] = {
    "three of one name": {"row4": {"pair_id": "a"}},
    "two of one side": {"row1": {"pair_side": "expert"}},
    "markup": {"row0": {"pair_side": "<img src=x onerror=alert(1)>"}, "row1": {"pair_id": "</script><b>"}},
    "no text": {"row0": {"pair_id": {"a": 1}, "pair_side": ["own"]}, "row1": {"pair_side": 7}},
    "property names": {"row0": {"pair_id": "__proto__"}, "row1": {"pair_id": "__proto__", "pair_side": "constructor"}},
    "no ratio": {"row0": {"turn_log_ratio": None}},
    "another β": {f"row{n}": {"estimator_settings": json.dumps({"beta": "much"})} for n in range(5)},
    "huge": {"row0": {"turn_log_ratio": "[1e300]"}, "row1": {"turn_log_ratio": "[-1e300]"}},
}
"""What broken or hostile dumps may say."""
