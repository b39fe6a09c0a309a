"""Show what was learned: tables, CSV, curves with bands over the seeds, and maps."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields
from io import StringIO
from statistics import median_low

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from verl_mtgrpo.lab.learn.learner import Curves
from verl_mtgrpo.lab.learn.maps import Cell, Map
from verl_mtgrpo.lab.learn.methods import method
from verl_mtgrpo.lab.learn.task import Task
from verl_mtgrpo.lab.learn.verdicts import COLLAPSES, LAST, LEARNS, STALLS, first_step, most, verdicts
from verl_mtgrpo.report.curves import line_style
from verl_mtgrpo.report.tables import markdown_table, mean_and_spread

_COLOR = {LEARNS: "#7FC8A9", STALLS: "#F5DC8C", COLLAPSES: "#E39A7B"}

_REASON = {
    "gain": "advantage of searching at the start, minus that of not searching (exact)",
    "differing": "share of groups whose rollouts are paid differently at the start (exact)",
}


def curves_table(task: Task, learned: Sequence[Curves]) -> str:
    """Return a Markdown table, one row per method."""
    goal = task.goal or "reward"
    others = [mark for mark in task.marks if mark != task.goal]
    header = [
        "method",
        "verdict (seeds)",
        f"{goal} at the end",
        *(f"{mark} at the end" for mark in others),
        "steps to half",
    ]
    start = task.start_logits[None]
    rows = [
        ["before training", "", f"{float(task.expected(start, task.goal)):.3f}"]
        + [f"{float(task.expected(start, mark)):.3f}" for mark in others]
        + [""]
    ]
    for curves in learned:
        verdict, agree = most(verdicts(task, curves))
        ends = [mean_and_spread(_end(curves.marks[mark])) for mark in others]
        rows.append(
            [
                curves.method.title,
                f"{verdict} ({agree} of {len(curves.seeds)})",
                mean_and_spread(_end(curves.goal)),
                *ends,
                _steps(first_step(task, curves)),
            ]
        )
    return markdown_table(header, rows)


def curves_csv(learned: Sequence[Curves]) -> str:
    """Return every value of every curve: one row per method, seed and step."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    marks = list(learned[0].marks)
    writer.writerow(["method", "seed", "step", "goal", *marks])
    for curves in learned:
        for n, seed in enumerate(curves.seeds):
            for step in range(curves.goal.shape[1]):
                values = [curves.goal[n, step], *(curves.marks[mark][n, step] for mark in marks)]
                writer.writerow([curves.method.name, seed, step, *(f"{float(value):.6g}" for value in values)])
    return out.getvalue()


def curves_figure(task: Task, learned: Sequence[Curves]) -> Figure:
    """Plot the goal and every mark by step: means over the seeds, bands from the lowest to the highest."""
    panels = {task.goal or "reward": [curves.goal for curves in learned]}
    panels |= {mark: [curves.marks[mark] for curves in learned] for mark in task.marks if mark != task.goal}
    figure = Figure(figsize=(4.2 * len(panels), 3.6), dpi=110, layout="constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, values) in zip(drawn, panels.items(), strict=True):
        for n, (curves, series) in enumerate(zip(learned, values, strict=True)):
            style = line_style(n)
            steps = range(series.shape[1])
            axes.plot(steps, series.mean(dim=0), label=curves.method.title, **style)
            axes.fill_between(steps, series.amin(dim=0), series.amax(dim=0), color=style["color"], alpha=0.18)
        axes.set_title(name)
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
    figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def map_table(plan: Map, cells: Sequence[Cell]) -> str:
    """Return one Markdown table per method: verdict, goal at the end and the reason in each cell."""
    parts: list[str] = []
    for name in dict.fromkeys(cell.method for cell in cells):
        rows: list[list[str]] = []
        for up in plan.up.values:
            here = {cell.across: cell for cell in cells if cell.method == name and cell.up == up}
            rows.append([f"{plan.up.name} {up:g}", *(_in_table(plan, here[across]) for across in plan.across.values)])
        header = ["", *(f"{plan.across.name} {across:g}" for across in plan.across.values)]
        parts.append(f"### {method(name).title}\n\n{markdown_table(header, rows)}")
    about = (
        "In each cell: verdict, goal at the end, median steps to half of the way; in brackets the "
        f"{_REASON[plan.reason]}."
    )
    return f"{about}\n\n" + "\n\n".join(parts)


def map_csv(cells: Sequence[Cell]) -> str:
    """Return every cell as CSV."""
    out = StringIO()
    names = [field.name for field in fields(Cell)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for cell in cells:
        values = [getattr(cell, name) for name in names]
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    return out.getvalue()


def map_figure(plan: Map, cells: Sequence[Cell]) -> Figure:
    """Draw one panel per method: a coloured cell for each point, with the goal at the end and the reason."""
    names = list(dict.fromkeys(cell.method for cell in cells))
    columns = min(len(names), 2 if len(names) != 3 else 3)
    lines = -(-len(names) // columns)
    across, up = plan.across.values, plan.up.values
    size = (0.85 * len(across) * columns + 1.6, (0.62 * len(up) + 0.9) * lines + 0.8)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        for cell in (cell for cell in cells if cell.method == name):
            x, y = across.index(cell.across), up.index(cell.up)
            axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=_COLOR[cell.verdict], edgecolor="white")
            doubt = "" if cell.agree == cell.seeds else f" ({cell.agree}/{cell.seeds})"
            first = "" if cell.first is None or plan.reason == "gain" else f", {cell.first}"
            axes.text(x + 0.5, y + 0.64, f"{cell.goal:.2f}{first}{doubt}", ha="center", va="center", fontsize=8)
            axes.text(x + 0.5, y + 0.28, _reason(plan, cell), ha="center", va="center", fontsize=6.5, color="0.25")
        _dress_map(axes, plan, method(name).title)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for verdict, color in _COLOR.items():
        panels[0].fill([], [], color=color, label=verdict)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    steps = "" if plan.reason == "gain" else ", median steps to half of the way"
    figure.supxlabel(f"{plan.across.label}\nlarge: goal at the end{steps}; small: {_REASON[plan.reason]}", fontsize=9)
    figure.supylabel(plan.up.label, fontsize=9)
    return figure


def _dress_map(axes: Axes, plan: Map, title: str) -> None:
    axes.set_title(title, fontsize=10)
    for values, ticks in ((plan.across.values, axes.set_xticks), (plan.up.values, axes.set_yticks)):
        ticks([n + 0.5 for n in range(len(values))], [f"{value:g}" for value in values], fontsize=8)
    axes.set_xlim(0, len(plan.across.values))
    axes.set_ylim(0, len(plan.up.values))
    axes.tick_params(length=0)


def _reason(plan: Map, cell: Cell) -> str:
    return f"{cell.reason:+.2f}" if plan.reason == "gain" else f"{cell.reason:.2g}"


def _in_table(plan: Map, cell: Cell) -> str:
    doubt = "" if cell.agree == cell.seeds else f" {cell.agree}/{cell.seeds}"
    first = "" if cell.first is None else f", {cell.first}"
    return f"{cell.verdict}{doubt} {cell.goal:.2f}{first} [{_reason(plan, cell)}]"


def _end(series: Tensor) -> list[float]:
    return torch.as_tensor(series[:, -LAST:].mean(dim=1)).tolist()


def _steps(found: Sequence[int | None]) -> str:
    """Return the median, seeds that never get there last, and how many those are."""
    never = found.count(None)
    steps = [10**9 if step is None else step for step in found]
    middle = median_low(steps)
    text = "never" if middle == 10**9 else str(middle)
    return f"{text} ({never} never)" if 0 < never < len(found) else text
