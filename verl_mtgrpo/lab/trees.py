"""Measure estimators on trees of rollouts beside chains, at equal numbers of generated tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.lab.measure import Credit, Measurement, measure
from verl_mtgrpo.lab.process import Process, Rollouts
from verl_mtgrpo.report.tables import markdown_table

BUDGET = 100
"""Generated tokens for which noise is given: that of a gradient averaged over as many groups as they pay for."""


LEAVES = 64
"""Trees with more leaves are sampled less often, so that no size takes much longer than the others."""


@dataclass(frozen=True)
class Row:
    """What was measured of one estimator.

    Attributes:
        rollouts: ``chains`` or ``trees``.
        estimator: Its name and the knobs that differ from their defaults.
        size: Rollouts per group, or children per state.
        measured: The measurement.
    """

    rollouts: str
    estimator: str
    size: int
    measured: Measurement

    @property
    def noise_per_budget(self) -> float:
        """Return the noise of a gradient for which :data:`BUDGET` tokens were generated."""
        return self.measured.noise * self.measured.tokens / BUDGET


ON_CHAINS: Mapping[str, Mapping[str, Any]] = {
    "mt_grpo": {"scale": "none"},
    "turn_rloo": {},
    "turn_gae": {"whiten": False},
}
ON_TREES: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("mt_grpo_tree", {"baseline": "siblings", "scale": "none"}),
    ("mt_grpo_tree", {"baseline": "siblings", "scale": "none", "weight": "rows"}),
    ("mt_grpo_tree", {"scale": "none"}),
    ("turn_rloo_tree", {}),
    ("turn_gae_tree", {"whiten": False}),
    ("arpo", {}),
    ("tree_grpo", {}),
    ("at2po", {}),
)


def measure_trees(
    process: Process,
    *,
    sizes: Sequence[int],
    groups: int,
    branching_turns: int,
    seed: int = 0,
    on_groups: Callable[[int], object] = lambda _: None,
) -> list[Row]:
    """Measure chains in groups of each size, and trees with as many children at each of the first turns.

    Of trees that may have more than :data:`LEAVES` leaves, as many fewer are sampled.
    """
    chains = {_label(name, knobs): credit_of(name, knobs) for name, knobs in ON_CHAINS.items()}
    trees = {_label(name, knobs): credit_of(name, knobs) for name, knobs in ON_TREES}
    rows: list[Row] = []
    for kind, estimators, branching in (("chains", chains, 0), ("trees", trees, branching_turns)):
        for size in sizes:
            count = max(min(groups, groups * LEAVES // size**branching), 2)
            found = measure(
                process, estimators, size=size, groups=count, branching_turns=branching, seed=seed, on_groups=on_groups
            )
            rows += [Row(kind, name, size, measured) for name, measured in found.items()]
    return rows


def credit_of(name: str, knobs: Mapping[str, Any]) -> Credit:
    """Return a registered estimator with these knobs as a function of rollouts; a critic has the exact values."""

    def credit(rollouts: Rollouts) -> Any:
        fields = {field: getattr(rollouts, field) for field in ESTIMATORS[name].fields}
        return ESTIMATORS[name](rollouts.rewards, rollouts.mask, rollouts.index, **fields, **knobs)[0]

    return credit


def trees_table(rows: Sequence[Row]) -> str:
    """Return everything as one Markdown table, sorted by estimator."""
    header = ["rollouts", "estimator", "G", "bias", "± (99 %)", "direction bias", "tokens", "noise"]
    header.append(f"noise at {BUDGET} tokens")
    cells = [
        [
            row.rollouts,
            row.estimator,
            str(row.size),
            _marked(f"{row.measured.bias:.3f}", row.measured.biased),
            f"{row.measured.noise_in_bias:.3f}",
            _marked(f"{row.measured.direction_bias:.3f}", row.measured.direction_biased),
            f"{row.measured.tokens:.1f}",
            f"{row.measured.noise:.2f}",
            f"{row.noise_per_budget:.3f}",
        ]
        for row in sorted(rows, key=lambda row: row.rollouts)
    ]
    order = {name: n for n, name in enumerate(dict.fromkeys(row.estimator for row in rows))}
    return markdown_table(header, sorted(cells, key=lambda cell: (cell[0], order[cell[1]])))


def _label(name: str, knobs: Mapping[str, Any]) -> str:
    critic = ["exact values"] if "values" in ESTIMATORS[name].fields else []
    return ", ".join([name, *critic, *(f"{key}={value}" for key, value in knobs.items() if key != "whiten")])


def _marked(text: str, significant: bool) -> str:
    return f"**{text}**" if significant else text
