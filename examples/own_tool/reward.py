"""The reward function of train.sh: nothing of verl-mtgrpo is in here."""

from __future__ import annotations

import re
from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None) -> float:
    """Return 1.0 if the last ``<answer>`` is an accepted one, else 0.0."""
    answers = re.findall(r"<answer>(.*?)</answer>", solution_str, re.DOTALL)
    return float(bool(answers) and answers[-1].strip() in ground_truth["target"])
