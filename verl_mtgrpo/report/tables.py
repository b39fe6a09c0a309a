"""Format tables, with the same rows for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from verl_mtgrpo.report.metrics import RunMetrics

# The metrics that the demo and the comparison report, with their readable names.
HEADLINES: Mapping[str, str] = {
    "tool/used": "tool execution",
    "tool/hit": "answer in results",
    "outcome/em": "exact match",
    "outcome/format": "format",
}

# The same where the turns of the policy are steps in an environment.
ENVIRONMENT_HEADLINES: Mapping[str, str] = {
    "env/outcome": "outcome",
    "env/return": "step rewards",
    "turn/count": "turns",
}


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns by spaces, first column to the left, the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    drawn = ["  ".join(_cell(text, widths, column) for column, text in enumerate(line)) for line in lines]
    return "\n".join([drawn[0].rstrip(), rule, *(line.rstrip() for line in drawn[1:])])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with right-aligned numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rule, *map(list, rows)])


def start_end_rows(metrics: RunMetrics, headlines: Mapping[str, str] = HEADLINES) -> list[list[str]]:
    """Return one row per headline metric: its sampled validation value before and after training, and the change."""
    rows: list[list[str]] = []
    for name, label in headlines.items():
        if ends := metrics.validated(name):
            start, end = ends
            rows.append([label, f"{start:.3f}", f"{end:.3f}", f"{end - start:+.3f}"])
    return rows


def mean_and_spread(values: Sequence[float], *, digits: int = 3) -> str:
    """Format ``mean (lowest to highest)`` over the seeds, or a single value alone, with ``digits`` after the point."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def paired_difference(first: Sequence[float], other: Sequence[float]) -> str:
    """Return ``mean [low, high]`` of the differences ``first - other`` and how many of them are above zero.

    The interval is Student's 95 % interval of the mean over the pairs. One pair has none; neither have pairs with equal
    differences, whose interval would be a point.

    Args:
        first: One value per seed.
        other: As many, of the same seeds in the same order.
    """
    from scipy.stats import ttest_rel

    apart = [one - two for one, two in zip(first, other, strict=True)]
    if not apart:
        return "–"
    text = f"{fmean(apart):+.3f}"
    if len({round(value, 12) for value in apart}) > 1:
        low, high = ttest_rel(first, other).confidence_interval(0.95)
        text += f" [{low:+.3f}, {high:+.3f}]"
    return f"{text}, above 0 in {sum(value > 0 for value in apart)} of {len(apart)}"


def _cell(text: str, widths: Sequence[int], column: int) -> str:
    return text.ljust(widths[column]) if column == 0 else text.rjust(widths[column])
