"""Build the rows of :mod:`.test_start`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.doctor.setups import DATA, TURNS, Healthy

ESTIMATOR, LOSS = "algorithm.adv_estimator", "actor_rollout_ref.actor.policy_loss.loss_mode"
MODE, FUNCTIONS = "trainer.v1.trainer_mode", f"{TURNS}.function_tool_path"
SCORE = ("reward.turn.outcome=compute_score", "reward.custom_reward_function.name=score")


@dataclass(frozen=True)
class Case:
    """One command line.

    Attributes:
        item: Number in issue 21.
        source: The source of the mistake, or of its being none: a row of new-user.md (`row 4`), or a reason.
        check: The check that has to report it.
        status: The expected status: ``fail``, ``warn`` or ``ok``.
        says: A regular expression for message and fix.
        change: Overrides after those of the healthy set-up.
        make: Makes more of them.
        preset: The config group.
        env: Environment variables.
    """

    item: str
    source: str
    check: str
    status: str
    says: str
    change: tuple[str, ...] = ()
    make: Callable[[Healthy], tuple[str, ...]] | None = None
    preset: str = "mt_grpo"
    env: dict[str, str] = field(default_factory=dict)


def fails(item: str, source: str, check: str, says: str, *change: str, **more: Any) -> Case:
    return Case(item, source, check, "fail", says, change, **more)


def warns(item: str, source: str, check: str, says: str, *change: str, **more: Any) -> Case:
    return Case(item, source, check, "warn", says, change, **more)


def is_sound(item: str, source: str, check: str, says: str, *change: str, **more: Any) -> Case:
    return Case(item, source, check, "ok", says, change, **more)


def reward(body: str, *, arguments: str = "transcript, ground_truth", kind: str = "def") -> Callable[[Healthy], Any]:
    """Write a reward function of the user's into ``mine.py``; its body begins in line 3."""

    def make(run: Healthy) -> tuple[str, ...]:
        text = f"from verl_mtgrpo.rewards import TurnRewards\n{kind} mine({arguments}):\n    {body}\n"
        return (f"reward.turn.preset={run.file('mine.py', text)}:mine",)

    return make


def score(body: str, arguments: str = "data_source, solution_str, ground_truth, extra_info=None") -> Any:
    """Write a reward function of the user's for verl."""

    def make(run: Healthy) -> tuple[str, ...]:
        file = run.file("score.py", f"def score({arguments}):\n    {body}\n")
        return (f"reward.custom_reward_function.path={file}",)

    return make


def rows(change: Callable[[dict[str, Any]], Any], *more: Callable[[Healthy], Any]) -> Callable[[Healthy], Any]:
    return lambda run: (
        f"{DATA}{run.questions('changed', change)}",
        *(override for one in more for override in one(run)),
    )


def own_tool(run: Healthy) -> tuple[str, ...]:
    text = (
        "from verl.tools.function_tool import function_tool\n\n\n@function_tool\ndef sql(query: str) -> str:\n"
        '    """Ask the database.\n\n    Args:\n        query: In SQL.\n    """\n    return query\n'
    )
    return (f"{FUNCTIONS}={run.file('own_tools.py', text)}",)
