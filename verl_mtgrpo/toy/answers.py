"""Show how the tools of a trial answered: one good and one failed call of each, and errors that counted as answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from verl_mtgrpo.rewards import ToolCall, Transcript
from verl_mtgrpo.rewards.transcript import TRANSCRIPT

_SOUNDS_WRONG = re.compile(r"""error|traceback|exception|["']ok["']: *["']?(false|no)\b""", re.IGNORECASE)
_SHOWN = 100  # characters


def calls_in(folder: Path) -> list[ToolCall]:
    """Return the calls of all rollouts in a folder of dumps, in their order; none without such a folder."""
    calls: list[ToolCall] = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda one: (len(one.name), one.name)):
        for line in path.read_text(encoding="utf-8").splitlines():
            if said := json.loads(line).get(TRANSCRIPT):
                calls += [call for turn in Transcript.from_dict(json.loads(said)).turns for call in turn.tool_calls]
    return calls


def answers(calls: Iterable[ToolCall]) -> Iterator[str]:
    """Yield, for each tool, a call that counted as answered, one that failed, and a warning if answers sound wrong."""
    by_tool: dict[str, list[ToolCall]] = {}
    for call in calls:
        by_tool.setdefault(call.name, []).append(call)
    for called, made in sorted(by_tool.items()):
        name = called or "a call without a name that can be read"
        good, failed = [call for call in made if call.ok], [call for call in made if not call.ok]
        for what, some in (("answered", good), ("failed", failed)):
            if some:
                yield f"{name}: {len(some)} of {len(made)} calls {what}, such as {_shown(some[0])}"
        wrong = [call for call in good if _SOUNDS_WRONG.search(call.result)]
        if wrong:
            yield (
                f"warning: {len(wrong)} of the {len(good)} answers of {name} sound like failures and are paid as if "
                f"the calls had worked, such as {_shown(wrong[0])}. If they are, return "
                'text, 0.0, {"ok": False, "why": "..."} for them (docs/your-own-tool.md)'
            )


def _shown(call: ToolCall) -> str:
    return f"{_cut(call.arguments)} -> {_cut(call.why or call.result or call.error or str(call.error_kind))}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
