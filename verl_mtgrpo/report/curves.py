"""Plot the curves of one run, and of several methods with the spread over their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from verl_mtgrpo.report.metrics import RunMetrics, Series
from verl_mtgrpo.report.tables import ENVIRONMENT_HEADLINES, HEADLINES

# Distinguishable with red-green colour blindness (Okabe and Ito's palette).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":")
_LABELS = {**HEADLINES, **ENVIRONMENT_HEADLINES}
_PANELS: Sequence[tuple[str, Sequence[str]]] = (
    ("search", ("tool/used", "tool/hit")),
    ("answer", ("outcome/em", "outcome/format")),
)
_ENVIRONMENT_PANELS: Sequence[tuple[str, Sequence[str]]] = (
    ("outcome", ("env/outcome",)),
    ("rewards of all steps", ("env/return",)),
)
_NO_SHARES = ("env/return", "turn/count")
"""Headlines that are not shares of the rollouts."""
_WIDTH, _HEIGHT = 4.2, 3.4


def line_style(number: int) -> dict[str, str]:
    """Return colour and dashes of the line with this number, from 0: different for the first eighteen."""
    dashes = _DASHES[number // len(COLORS) % len(_DASHES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": dashes}


def training_figure(metrics: RunMetrics, *, title: str) -> Figure:
    """Plot shares by step: lines are the training rollouts of each step, rings the sampled validation.

    A third panel shows the mean reward paid at each turn. A run in an environment has panels of its own.
    """
    figure = Figure(figsize=(3 * _WIDTH, _HEIGHT), layout="constrained")
    first, second, reward = figure.subplots(1, 3)
    panels = _ENVIRONMENT_PANELS if "env/return" in metrics.train else _PANELS
    for axes, (name, keys) in zip((first, second), panels, strict=True):
        for color, key in zip(COLORS, keys, strict=False):
            _plot_series(axes, metrics.train.get(key, {}), color=color, label=_LABELS[key])
            validation = metrics.validation.get(key, {})
            axes.plot(*_points(validation), "o", color=color, fillstyle="none", markersize=8)
        _dress_headline(axes, keys[0], title=f"{name} (rings: validation)")
    turn_keys = sorted(key for key in metrics.train if key.startswith("turn/") and key.endswith("/reward"))
    for color, key in zip(COLORS, turn_keys, strict=False):
        _plot_series(reward, metrics.train[key], color=color, label=f"turn {key.split('/')[1]}")
    _dress(reward, title="reward by turn", label="mean reward", share=False)
    figure.suptitle(title)
    return figure


def comparison_figure(
    runs: Mapping[str, Sequence[RunMetrics]], *, title: str, headlines: Mapping[str, str] = HEADLINES
) -> Figure:
    """Plot one panel per headline metric, and in it one line per method.

    A line is the mean over the method's seeds, in a band from the lowest to the highest seed.

    Args:
        runs: Method name -> the runs of its seeds.
        title: Title of the figure.
        headlines: The metrics, one panel each, and their titles.
    """
    figure = Figure(figsize=(len(headlines) * _WIDTH, _HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(headlines))
    for axes, (key, label) in zip(panels, headlines.items(), strict=True):
        for color, (method, seeds) in zip(COLORS, runs.items(), strict=False):
            _plot_spread(axes, [run.train.get(key, {}) for run in seeds], color=color, label=method)
        _dress_headline(axes, key, title=label)
    figure.suptitle(title)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; no display and no pyplot state is involved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def _plot_series(axes: Axes, series: Series, *, color: str, label: str) -> None:
    if series:
        axes.plot(*_points(series), "-", color=color, label=label)


def _plot_spread(axes: Axes, seeds: Sequence[Series], *, color: str, label: str) -> None:
    """Plot only steps that every seed has: a mean over fewer seeds would jump where one ends."""
    steps = sorted(set.intersection(*(set(series) for series in seeds))) if seeds else []
    if not steps:
        return
    columns = [[series[step] for series in seeds] for step in steps]
    axes.plot(steps, [fmean(column) for column in columns], "-", color=color, label=label)
    axes.fill_between(
        steps, [min(column) for column in columns], [max(column) for column in columns], color=color, alpha=0.18
    )


def _points(series: Series) -> tuple[list[int], list[float]]:
    steps = sorted(series)
    return steps, [series[step] for step in steps]


def _dress_headline(axes: Axes, key: str, *, title: str) -> None:
    share = key not in _NO_SHARES
    _dress(axes, title=title, label="share of rollouts" if share else "mean of the rollouts", share=share)


def _dress(axes: Axes, *, title: str, label: str, share: bool) -> None:
    axes.set_title(title)
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if share:
        axes.set_ylim(-0.02, 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize="small")
