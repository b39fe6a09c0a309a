"""Dashboards: which metrics belong on one panel, as a saved view of Weights & Biases.

trackio needs no definition: it groups metrics by what stands before the first slash, so ``turn``, ``tool``, ``outcome``
and ``guard`` are groups of panels there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

Panels = Mapping[str, str | Sequence[str]]
"""Title -> metrics of one line chart: names, or a regular expression for those that depend on the turn or the data."""

SECTIONS: Mapping[str, Panels] = {
    "Turn credit": {
        "Reward by turn": r"turn/\d+/reward",
        "Dense rewards by turn": r"turn/\d+/dense/.+",
        "Advantage by turn": r"turn/\d+/advantage_mean",
        "Spread of the advantage by turn": r"turn/\d+/advantage_std",
        "Groups without a difference, by turn": r"turn/\d+/zero_variance",
        "Advantage against the turn's own reward": r"turn/\d+/sign_conflict",
        "Rollouts that have the turn": r"turn/\d+/rollouts",
        "Turns": ["turn/count"],
    },
    "Tools": {
        "Tool use": ["tool/used", "tool/success", "tool/hit"],
        "Calls": ["tool/calls", "tool/failures", "tool/repeats", "tool/no_hits"],
        "Failures by kind": r"tool/errors/\w+",
        "Seconds of the longest call": ["tool/latency_s/p50", "tool/latency_s/p95", "tool/latency_s/max"],
        "Outages": ["tool/outage", "tool/retries"],
    },
    "Outcome": {
        "Outcome reward": ["outcome/reward"],
        "Answers": ["outcome/em", "outcome/f1", "outcome/contains", "outcome/format"],
        "Groups without a difference": ["outcome/zero_variance"],
        "Lost or cut": ["outcome/dropped", "outcome/failed", "outcome/truncated"],
        "Validation": r"val-(core|aux)/.+/(outcome|tool)/.+",
    },
    "Where rollouts went": {
        "Rollouts": [
            *("rollouts_total/asked", "rollouts_total/trained", "rollouts_total/dropped", "rollouts_total/failed"),
            *("rollouts_total/alone", "rollouts_total/filtered", "rollouts_total/repeated"),
        ],
    },
    "Guards": {
        "Guards that fire": [
            *("guard/turn_rewards", "guard/zero_variance", "guard/tool_failures", "guard/tool_use"),
            *("guard/outcome", "guard/bad_advantages", "guard/masked_advantages"),
        ],
        "What they watch": ["guard/turn_rewarded", "guard/zero_variance_groups", "guard/paid"],
        "Tokens with an advantage that they should not have": [
            *("guard/bad_advantage_tokens", "guard/masked_advantage_tokens"),
        ],
    },
    "Judge": {
        "Scores": ["judge/turn_score", "outcome/judge"],
        "Requests": ["judge/requests", "judge/cached", "judge/repaired"],
        "Tokens": ["judge/tokens"],
    },
    "Trees": {
        "Branches": ["branch/per_prompt", "branch/shortfall", "branch/fired"],
        "Tokens saved": ["branch/saved_tokens", "forest/shared_fraction"],
        "Siblings": ["forest/with_siblings", "forest/sibling_std"],
    },
}
"""Section -> its panels. Sections of what a run does not log are closed and empty."""
_OPEN = ("Turn credit", "Tools", "Outcome", "Guards")


def wandb_view(entity: str, project: str, name: str) -> Workspace:
    """Return the view for a project of Weights & Biases; its ``save`` uploads it and needs a login.

    Panels with the names of single turns select metrics by a regular expression, so that a rollout of any length has
    a line for each of its turns.
    """
    from wandb_workspaces import workspaces as views
    from wandb_workspaces.reports.v2 import LinePlot

    def panel(title: str, metrics: str | Sequence[str]) -> LinePlot:
        if isinstance(metrics, str):
            return LinePlot(title=title, x="Step", metric_regex=f"^{metrics}$")
        return LinePlot(title=title, x="Step", y=list(metrics))

    sections = [
        views.Section(name=section, is_open=section in _OPEN, panels=[panel(*one) for one in panels.items()])
        for section, panels in SECTIONS.items()
    ]
    return views.Workspace(entity=entity, project=project, name=name, sections=sections)
