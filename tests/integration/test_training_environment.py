"""An environment on its way through verl's real trainer: rewards of steps, an environment that breaks, validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.runs import QUESTIONS, ROLLOUTS, run
from tests.training import REPOSITORY
from verl_mtgrpo.integration.trainer.dump import NO_COMPANY

pytestmark = pytest.mark.imports_verl

TURNS = 4


@pytest.mark.verl
def test_an_environment_trains_and_one_that_breaks_costs_its_rollouts(assets: Path, tmp_path: Path):
    result = run(
        assets,
        tmp_path,
        "+mtgrpo_env=default",
        "trainer.turn.environment.name=tests.environments.counting:Tower",
        f"+trainer.turn.environment.options.breaks={QUESTIONS}",
        f"actor_rollout_ref.rollout.multi_turn.max_assistant_turns={TURNS}",
        "data.max_response_length=256",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        "trainer.turn.dump.groups=0",
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    assert result.returncode == 0, result.tail()
    assert set(result.steps) == {1, 2}
    for number, step in result.steps.items():
        rows = [json.loads(line) for line in (tmp_path / "rollouts" / f"{number}.jsonl").read_text().splitlines()]
        assert len(rows) == QUESTIONS * ROLLOUTS
        kept = [row for row in rows if not row["outcome/dropped"]]
        check_rows(kept)
        broken = [row for row in rows if row["outcome/dropped"] and "environment failed" in row["dropped_reason"]]
        assert all("the tower fell" in row["dropped_reason"] for row in broken)
        assert step["tool/errors/environment_error"] == pytest.approx(len(broken) / len(rows))
        assert step["outcome/failed"] == 0.0
        mean = sum(sum(json.loads(row["turn_rewards"])) for row in kept) / len(kept)
        assert step["critic/score/mean"] == pytest.approx(mean, abs=1e-4)
        # The only rollout left of its group is measured, but nothing is learnt from it.
        outcomes = [row["env/outcome"] for row in rows if row in kept or row["dropped_reason"] == NO_COMPANY]
        assert step["env/outcome"] == pytest.approx(sum(outcomes) / len(outcomes), abs=1e-6)
        assert 1 < step["turn/count"] <= TURNS
        assert step["training/rollout_probs_diff_max"] < 1e-3
    assert any(step["tool/errors/environment_error"] for step in result.steps.values()), "it broke somewhere"
    validated = [json.loads(line) for line in (tmp_path / "val" / "2.jsonl").read_text().splitlines()]
    check_rows([row for row in validated if not row["outcome/dropped"]])


def check_rows(rows: list[dict]) -> None:
    """What each turn is paid follows from its text alone."""
    assert rows
    for row in rows:
        turns = json.loads(row["transcript"])["turns"]
        own = [0.5 if "search" in turn["text"] else 0.1 for turn in turns]
        right = float("Oslo" in turns[-1]["text"])
        assert json.loads(row["turn_rewards"]) == pytest.approx([*own[:-1], own[-1] + right])
        assert row["env/outcome"] == right
        assert not any("Oslo" in turn["text"] for turn in turns[:-1]), "the right answer ends the episode"
        results = [call["result"] for turn in turns[:-1] for call in turn["tool_calls"]]
        assert results == ["The tower is in Oslo."] * (len(turns) - 1)
