"""A decider in training on its way through verl's real trainer: what it changes, and the weights that correct it."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

pytest.importorskip("verl")

from tests.integration.runs import run
from tests.training import REPOSITORY
from verl_mtgrpo.report.rollouts import read_dump

pytestmark = pytest.mark.imports_verl

SCORER = REPOSITORY / "examples" / "decide" / "scorer.py"
DECIDE = "trainer.turn.decide"


def mean_tokens(folder: Path) -> float:
    """The generated tokens of the rollouts of a dump."""
    rollouts = [one.transcript for path in folder.glob("*.jsonl") for one in read_dump(path)]
    return fmean(sum(turn.span[1] - turn.span[0] for turn in one.turns) for one in rollouts)


@pytest.mark.verl
@pytest.mark.slow
def test_two_steps_with_a_posterior_over_four_proposals(assets: Path, tmp_path: Path):
    correction = "algorithm.rollout_correction"
    result = run(
        assets,
        tmp_path,
        "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_decide_agent",
        f"{DECIDE}.by=posterior",
        f"{DECIDE}.when=training",
        f"{DECIDE}.candidates=4",
        f"{DECIDE}.alpha=0.5",
        f"{DECIDE}.score='{SCORER}:supported'",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        f"{correction}.rollout_is=sequence",
        f"{correction}.rollout_is_threshold=1000",
        "actor_rollout_ref.rollout.n=16",
        "actor_rollout_ref.rollout.val_kwargs.n=16",
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        "trainer.turn.dump.groups=0",
    )
    assert result.returncode == 0, result.tail()
    steps = [result.steps[step] for step in (1, 2)]
    # The toy's policy searches in half of its first turns, the scorer gives a search 0.5 and a guess 0. With s of four
    # proposals that search, one of them is taken with probability s e / (s e + 4 - s): 0.68 for s binomial.
    used = sum(step["tool/used"] for step in steps) / 2
    assert used == pytest.approx(0.68, abs=0.12), "three standard deviations of a share of 128 rollouts"
    assert all(0.1 < step["decide/changed"] < 0.9 for step in steps)
    assert all(step["decide/extra_tokens"] > 0 for step in steps)
    # verl's mean is over tokens. Weighted so, decided rollouts have as many tokens as those of the policy. Turns that
    # are hardly ever taken have large weights, so the mean of 128 rollouts is known to a third.
    weight = sum(step["rollout_corr/rollout_is_mean"] for step in steps) / 2
    decided, of_policy = (mean_tokens(tmp_path / folder) for folder in ("rollouts", "val"))
    assert decided > of_policy, "who searches writes more"
    assert weight == pytest.approx(of_policy / decided, abs=0.35)
    assert all(step["rollout_corr/rollout_is_max"] > 1.2 > 0.8 > step["rollout_corr/rollout_is_min"] for step in steps)
    validated = result.steps[2]["val-aux/searchR1_nq/tool/used/mean@16"]
    assert validated == pytest.approx(0.5, abs=0.19), "a validation is not decided with when=training"
