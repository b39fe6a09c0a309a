"""Show the laboratory's results as tables and as a plot."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import fields
from io import StringIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verl_mtgrpo.lab import Measurement
from verl_mtgrpo.report.curves import line_style
from verl_mtgrpo.report.tables import markdown_table

Results = Mapping[str, Mapping[int, Mapping[str, Measurement]]]
"""Process -> group size -> estimator -> what was measured."""


def summary_tables(results: Results, *, size: int) -> str:
    """Return two Markdown tables, estimators by processes at one group size: direction bias and noise."""
    estimators = list(next(iter(next(iter(results.values())).values())))

    def table(cell: str) -> str:
        rows = [[name, *(_cells(results[p][size][name])[cell] for p in results)] for name in estimators]
        return markdown_table(["estimator", *results], rows)

    return (
        f"Direction bias at G = {size}: how far the mean gradient points away from the exact one, relative to its "
        f"length. **Bold**: more than sampling explains (99 %).\n\n{table('direction bias')}\n\n"
        f"Noise at G = {size}: variance of the gradient of one group at equal step length, relative to the exact "
        f"gradient's squared length.\n\n{table('noise')}"
    )


def full_tables(results: Results) -> str:
    """Return one Markdown table per process, with every group size."""
    parts: list[str] = []
    for process, by_size in results.items():
        rows: list[list[str]] = []
        for name in next(iter(by_size.values())):
            for size, measured in by_size.items():
                rows.append([name, str(size), *_cells(measured[name]).values()])
        header = ["estimator", "G", *_cells(next(iter(next(iter(by_size.values())).values())))]
        parts.append(f"### {process}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def as_csv(results: Results) -> str:
    """Return every number as CSV, one row per process, group size and estimator."""
    out = StringIO()
    names = [field.name for field in fields(Measurement)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["process", "group_size", "estimator", *names])
    for process, by_size in results.items():
        for size, measured in by_size.items():
            for estimator, m in measured.items():
                writer.writerow([process, size, estimator, *(getattr(m, name) for name in names)])
    return out.getvalue()


def lab_figure(results: Results) -> Figure:
    """Plot direction bias (above) and noise (below) by group size, one column per process."""
    figure = Figure(figsize=(3.6 * len(results), 7.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(results), squeeze=False)
    for column, (process, by_size) in enumerate(results.items()):
        sizes = list(by_size)
        for n, name in enumerate(by_size[sizes[0]]):
            style = {**line_style(n), "marker": "o"}
            for row, key in enumerate(("direction_bias", "noise")):
                values = [getattr(by_size[size][name], key) for size in sizes]
                panels[row][column].plot(sizes, values, label=name, markersize=3, linewidth=1.2, **style)
        floor = [by_size[size][name].noise_in_bias for size in sizes for name in ["turn_rloo"] if name in by_size[size]]
        if floor:
            panels[0][column].fill_between(sizes, 0, floor, color="0.85", label="sampling error of turn_rloo (99 %)")
        _dress(panels[0][column], panels[1][column], process, sizes)
    panels[0][0].set_ylabel("direction bias")
    panels[1][0].set_ylabel("noise (variance / |g*|²)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8, handlelength=4)
    return figure


def _dress(bias: Axes, noise: Axes, process: str, sizes: Sequence[int]) -> None:
    bias.set_title(process)
    bias.set_ylim(bottom=0)
    noise.set_yscale("log")
    for axes in (bias, noise):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.grid(alpha=0.3)
        axes.set_xlabel("group size G")


def _cells(m: Measurement) -> dict[str, str]:
    return {
        "scale": f"{m.scale:.2f}",
        "bias": _marked(f"{m.bias:.3f}", m.biased),
        "± (99 %)": f"{m.noise_in_bias:.3f}",
        "direction bias": _marked(f"{m.direction_bias:.3f}", m.direction_biased),
        "cosine": f"{m.cosine:.4f}",
        "variance": f"{m.variance:.2f}",
        "noise": f"{m.noise:.2f}",
    }


def _marked(text: str, significant: bool) -> str:
    return f"**{text}**" if significant else text
