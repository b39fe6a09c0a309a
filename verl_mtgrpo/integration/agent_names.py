"""Say which agent loop to name, and find question files whose rows name one of verl's, as its own tool examples do.

verl takes a row's ``agent_name`` before ``actor_rollout_ref.rollout.agent.default_agent_loop``, so such rows would be
rolled out by a loop that records no turns. :mod:`.row_loops` says what becomes of them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

TOOL_AGENT = "tool_agent"
VERLS_LOOPS = ("single_turn_agent", TOOL_AGENT)
"""verl's loops, which put one reward on a rollout's last token. A custom loop may differ."""
COLUMN = "agent_name"


def instead_of(loop: str, variants: Mapping[str, str], off: str) -> str:
    """Return what to do where the run's agent loop cannot do what a setting asks for.

    Args:
        loop: The run's agent loop.
        variants: Loop -> the same loop that can; the first one is for loops that are not ours.
        off: The override that no longer asks for it.
    """
    if loop not in variants and loop.startswith("mtgrpo_"):  # that of trees, roles, environments or decisions
        return f"set {off}: the two do not go together"
    return f"set it to {variants.get(loop, next(iter(variants.values())))}, or set {off}"


def verls_loops_in(path: Path) -> list[str]:
    """Return the loops of verl's that rows of a parquet file name, sorted; none without such a column."""
    import pyarrow.parquet as pq

    if COLUMN not in pq.read_schema(path).names:
        return []
    names = set(pq.read_table(path, columns=[COLUMN])[COLUMN].to_pylist())
    return sorted(str(name) for name in names if name in VERLS_LOOPS)


def without_agent_names(path: Path) -> str:
    """Return a shell command that writes a copy of a parquet file without the column."""
    copy = path.with_name(f"{path.stem}_turns{path.suffix}")
    source, target = json.dumps(str(path)), json.dumps(str(copy))
    code = f'import pyarrow.parquet as pq; pq.write_table(pq.read_table({source}).drop_columns(["{COLUMN}"]), {target})'
    return f"python3 -c {shlex.quote(code)}"
