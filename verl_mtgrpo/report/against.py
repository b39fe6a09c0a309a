"""Two runs side by side: one self-contained page with the curves of both and their rollouts of the same questions.

It is made of the parts of the credit report (:mod:`.html`) and is as inert: text of rollouts never becomes markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_mtgrpo.atomic import atomic_write
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.report.catalog import Catalog, Group
from verl_mtgrpo.report.html import details, embedded, frame, group_row, packed, run_of
from verl_mtgrpo.report.metrics import RunMetrics

Question = tuple[bool, str, str, str, tuple[str, ...]]
"""Whether it was trained on, data source, id, text and accepted answers: equal for the same question in two runs."""


@dataclass(frozen=True)
class Run:
    """One of the two runs.

    Attributes:
        name: What the page calls it.
        catalog: Its rollouts.
        metrics: What verl logged, for curves.
    """

    name: str
    catalog: Catalog
    metrics: RunMetrics | None = None


def write_comparison(
    path: Path,
    runs: tuple[Run, Run],
    *,
    title: str,
    made_by: str,
    on_group: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> None:
    """Write the page; replace an existing file when the new one is complete.

    Args:
        path: The HTML file.
        runs: The two runs, the first on the left.
        title: Title of the page.
        made_by: Version of this package.
        on_group: Wraps the stream of the groups of both: a progress bar.

    Raises:
        DataError: The runs have no question in common, and not even a kind of rollouts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    head, middle, end = frame(title, "against", "against")
    index = _index(runs, title=title, made_by=made_by)
    groups = (one for run in runs for one in run.catalog.read_groups(run.catalog.groups))
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)
        file.write(f'<script type="application/json" id="index">{embedded(index)}</script>\n')
        file.write(middle)
        for number, (group, rollouts) in enumerate(on_group(groups)):
            chunk = packed(details(group, rollouts))
            file.write(f'<script type="application/octet-stream" id="g{number}">{chunk}</script>\n')
        file.write(end)


def _index(runs: tuple[Run, Run], *, title: str, made_by: str) -> dict[str, Any]:
    """Return what page/against.js reads; the groups of the second run are numbered on from those of the first."""
    first, second = (run.catalog.groups for run in runs)
    if {group.training for group in first}.isdisjoint({group.training for group in second}):
        raise DataError(
            "one run has training rollouts only and the other one validation rollouts only",
            fix="compare training rollouts with training rollouts, or a validation with a validation",
        )
    sources = sorted({group.data_source for group in (*first, *second)})
    parts = [run_of(run.catalog, run.metrics) for run in runs]
    return {
        "title": title,
        "madeBy": made_by,
        "sources": sources,
        "kinds": {name: True for part in parts for name in part["kinds"]},
        "estimators": {name: one for part in parts for name, one in part["estimators"].items()},
        "runs": [{"name": run.name, **part} for run, part in zip(runs, parts, strict=True)],
        "groups": [group_row(group, sources) for group in (*first, *second)],
        "start": len(first),
        "pairs": common_questions(first, second),
    }


def common_questions(first: Sequence[Group], second: Sequence[Group]) -> list[list[list[int]]]:
    """Return the questions that both runs have, each with the numbers of its groups in both, in the first run's order.

    Groups of the second run are numbered on from those of the first.
    """
    found: dict[Question, tuple[list[int], list[int]]] = {}
    for number, group in enumerate((*first, *second)):
        both = found.setdefault(_question(group), ([], []))
        both[number >= len(first)].append(number)
    return [[left, right] for left, right in found.values() if left and right]


def _question(group: Group) -> Question:
    return group.training, group.data_source, group.question_id, group.question, group.answers
