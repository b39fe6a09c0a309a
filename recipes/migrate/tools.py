"""The tool of before.sh and after.sh, as verl documents function tools: nothing of verl-mtgrpo is in here."""

from __future__ import annotations

import os
from pathlib import Path

from verl.tools.function_tool import function_tool


@function_tool
def search(query: str) -> str:
    """Return the passage that shares most words with the query.

    Args:
        query: A few words that a passage with the answer would contain.
    """
    words = set(query.lower().split())
    passages = Path(os.environ["PASSAGES"]).read_text(encoding="utf-8").splitlines()
    return max(passages, key=lambda passage: len(words & set(passage.lower().rstrip(".").split())))
