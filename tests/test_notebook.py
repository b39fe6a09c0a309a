"""The notebook runs from its first cell to its last, and what it works out is what was trained on."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebooks" / "why_this_advantage.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_is_stored_without_results():
    assert not [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


@pytest.mark.heavy
def test_all_cells_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """As in Jupyter, cells share their names, and the folder is the notebook's; the value of a last line is shown."""
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"]))
            last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
            exec(compile(body, cell["id"], "exec"), names)
            if last is not None:
                shown.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), names))
    printed = capsys.readouterr().out
    stored, terms, total = re.findall(r"trained on ([+-][\d.]+)\n(.*) = ([+-][\d.]+)", printed)[0]
    assert abs(float(stored) - float(total)) < 1e-3
    assert sum(map(float, re.findall(r" ([+-]\d+\.\d+)", " " + terms))) == pytest.approx(float(total), abs=1e-3)
    count, difference = re.findall(r"(\d+) advantages, largest difference (\S+)", printed)[0]
    assert int(count) > 30 and float(difference) < 1e-3
    assert len(shown) >= 4 and not shown[0].empty
