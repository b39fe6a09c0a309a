"""Write an evaluation: Markdown and a terminal for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from verl_mtgrpo.report import calibration_tables
from verl_mtgrpo.report.calibration import Calibration
from verl_mtgrpo.report.evaluation import METRICS, Bootstrap, Estimate, Evaluation, Row
from verl_mtgrpo.report.published import NOTES, ORDER, PAPER_AVERAGE, PUBLISHED, Published
from verl_mtgrpo.report.tables import markdown_table

_HEADER = ("data set", *METRICS, "questions", "rollouts")
_NOTHING = "–"
OF_TRAINING = (
    "Training rollouts, with the sampling of training: questions of one step, of which "
    "trainer.turn.dump.groups may have kept only some. Do not compare them with a validation."
)
"""The warning for numbers from a training dump."""

Differences = Mapping[str, Sequence[Row]]
"""Label of a later dump -> its differences to the first."""
Calibrations = Mapping[str, Sequence[Calibration]]
"""Label of a dump -> how its turn rewards go with its outcomes."""


def table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one dump: data sets, then the average, without columns of zeros only."""
    rows = [*evaluation.rows, *([evaluation.average] if evaluation.average else [])]
    lost = any(row.dropped or row.missing for row in rows)
    undefined = any(row.hits_undefined for row in rows)
    header = [*_HEADER, *(["dropped", "missing"] if lost else []), *(["yes or no"] if undefined else [])]
    return header, [
        [
            row.data_set,
            *(show(row.estimates[name]) for name in METRICS),
            str(row.questions),
            str(row.rollouts),
            *([str(row.dropped), str(row.missing)] if lost else []),
            *([str(row.hits_undefined)] if undefined else []),
        ]
        for row in rows
    ]


def paper_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]] | None:
    """Return exact match next to the paper's; None if the paper has no number for any of these data sets."""
    ours = {one.label: _comparable(one) for one in evaluations}
    names = [name for name in (*ORDER, PAPER_AVERAGE) if any(name in rows for rows in ours.values())]
    methods = [one for one in PUBLISHED if any(_published(one, name) is not None for name in names)]
    if not methods:
        return None
    lines: list[list[str]] = []
    for name in names:
        theirs = [_published(one, name) for one in methods]
        if any(value is not None for value in theirs):
            mine = [show(rows[name].estimates["em"]) if name in rows else _NOTHING for rows in ours.values()]
            lines.append([name, *mine, *(_NOTHING if value is None else f"{value:.3f}" for value in theirs)])
    return ["exact match", *ours, *(method.label for method in methods)], lines


def to_markdown(
    evaluations: Sequence[Evaluation],
    changes: Differences,
    bootstrap: Bootstrap,
    *,
    source: str,
    calibrations: Calibrations,
) -> str:
    """Return the whole report."""
    parts = ["# Evaluation"]
    for one in evaluations:
        parts += [f"## {one.label}", *([OF_TRAINING] if one.training else []), markdown_table(*table(one))]
        parts += [f"- dropped: {reason} ({count} rollouts)" for reason, count in one.reasons.items()]
    for other in evaluations[1:]:
        parts += _difference_parts(evaluations[0], other, changes[other.label])
    parts.append(f"## {calibration_tables.TITLE}")
    for label, some in calibrations.items():
        parts += [f"### {label}", *calibration_tables.to_markdown(some)]
    if beside := paper_table(evaluations):
        parts += ["## Next to the paper's numbers", markdown_table(*beside), *NOTES]
    parts += ["## What is measured", "\n".join(f"- **{name}**: {how}." for name, how in METRICS.items())]
    parts.append(
        "These are from the transcripts, not from logged numbers. A question counts as the mean over its rollouts, a "
        "data set as the mean over its questions, the average as the mean over data sets. In parentheses: 95 % "
        f"intervals, percentiles of {bootstrap.resamples} bootstrap resamples of the questions (seed {bootstrap.seed})."
        " They say how much other questions of the set would change the mean, not other training seeds. A share of "
        "0 or 1 has an interval of width 0: no resample can contain what did not occur. Dropped rollouts (the search "
        "was down, or no reward could be found) have no score; missing ones are those that the dump lacks but "
        "other questions of the set have: they failed with an error. The column *yes or no* counts the questions left "
        "out of the hit rate."
    )
    return "\n\n".join([*parts, f"Made by verl-mtgrpo {source}."]) + "\n"


def _difference_parts(first: Evaluation, other: Evaluation, rows: Sequence[Row]) -> list[str]:
    header = ["data set", *METRICS, "questions in both"]
    lines = [[row.data_set, *(show(row.estimates[m], "+") for m in METRICS), str(row.questions)] for row in rows]
    left_out = first.data_sets.keys() & other.data_sets.keys() - {row.data_set for row in rows}
    parts = [f"## {other.label} − {first.label}"]
    parts += [markdown_table(header, lines)] if lines else ["There are no questions to pair."]
    if left_out:
        names = ", ".join(sorted(left_out))
        parts.append(f"Not paired, because the questions have no unique ids or no question is in both: {names}.")
    return parts


def to_csv(evaluations: Sequence[Evaluation]) -> str:
    """Return one line per dump and data set, and averages, with the paper's exact match in the last columns."""
    names = [name.replace(" ", "_") for name in METRICS]
    header = ["dump", "data_set", "questions", "rollouts", "dropped", "missing", "hits_undefined"]
    header += [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, *(f"em of {one.label}" for one in PUBLISHED)])
    for evaluation in evaluations:
        for row in _all_rows(evaluation):
            counts = [row.questions, row.rollouts, row.dropped, row.missing, row.hits_undefined]
            line: list[Any] = [evaluation.label, row.data_set, *counts]
            for name in METRICS:
                one = row.estimates[name]
                line += ["", "", ""] if one is None else [one.mean, one.low, one.high]
            writer.writerow([*line, *(_published(one, row.data_set) for one in PUBLISHED)])
    return out.getvalue()


def to_json(
    evaluations: Sequence[Evaluation],
    changes: Differences,
    bootstrap: Bootstrap,
    *,
    source: str,
    calibrations: Calibrations,
) -> str:
    """Return everything, with the definitions."""
    whole = {
        "made_by": source,
        "metrics": METRICS,
        "bootstrap": asdict(bootstrap),
        "dumps": [
            {
                "dump": one.label,
                "training": one.training,
                "rows": [asdict(row) for row in _all_rows(one)],
                "dropped": dict(one.reasons),
                "calibration": [calibration_tables.as_dict(some) for some in calibrations.get(one.label, ())],
            }
            for one in evaluations
        ],
        "differences": {label: [asdict(row) for row in rows] for label, rows in changes.items()},
        "paper": {"notes": NOTES, "em": [asdict(one) for one in PUBLISHED]},
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def show(estimate: Estimate | None, sign: str = "") -> str:
    """Format ``0.490 (0.470–0.510)``; with ``sign="+"`` positive numbers have a sign too, and "to" is written out."""
    if estimate is None:
        return _NOTHING
    if estimate.low is None:
        return f"{estimate.mean:{sign}.3f}"
    between = " to " if sign else "–"
    return f"{estimate.mean:{sign}.3f} ({estimate.low:{sign}.3f}{between}{estimate.high:{sign}.3f})"


def _all_rows(evaluation: Evaluation) -> list[Row]:
    return [*evaluation.rows, *(row for row in (evaluation.average, evaluation.paper_average) if row)]


def _comparable(evaluation: Evaluation) -> dict[str, Row]:
    rows = {row.data_set: row for row in evaluation.rows}
    if evaluation.paper_average:
        rows[evaluation.paper_average.data_set] = evaluation.paper_average
    return rows


def _published(one: Published, data_set: str) -> float | None:
    return one.average if data_set == PAPER_AVERAGE else one.em.get(data_set)
