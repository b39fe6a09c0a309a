"""Run ``mtgrpo eval --checkpoint``: verl validates a saved checkpoint, and gets the numbers of the training run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.runs import QUESTIONS, run
from tests.training import REPOSITORY

pytestmark = [pytest.mark.verl, pytest.mark.slow]

ROLLOUT = "actor_rollout_ref.rollout"
# verl reads only the temperature, not do_sample.
GREEDY = f"{ROLLOUT}.val_kwargs.temperature=0"


def evaluate(assets: Path, out: Path, *options: str) -> dict[str, str]:
    """Run the command with the settings that a validation needs, and return the row of its only data set."""
    overrides = [
        f"data.val_files={assets / 'val.parquet'}",
        "data.max_prompt_length=64",
        "data.max_response_length=160",
        f"{ROLLOUT}.multi_turn.max_assistant_turns=2",
        f"{ROLLOUT}.val_kwargs.n=4",
        GREEDY,
    ]
    argv = [sys.executable, "-m", "verl_mtgrpo.cli.main", "eval", "--cpu", "--quiet", "--index", str(assets / "index")]
    done = subprocess.run(
        [*argv, "--out", str(out), *options, "--", *overrides],
        capture_output=True, text=True, cwd=out.parent, timeout=400,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((out / "eval.csv").open())
    return row


def said(dump: Path) -> list[str]:
    return sorted(json.loads(line)["output"] for line in dump.read_text().splitlines())


def test_a_checkpoint_is_measured_as_its_training_run_did(assets: Path, tmp_path: Path):
    # Large steps, so that the checkpoint answers differently from the initial model.
    training = ["actor_rollout_ref.actor.optim.lr=3e-3", "trainer.save_freq=2", "trainer.val_before_train=True"]
    trained = run(assets, tmp_path / "run", *training, GREEDY)
    assert trained.returncode == 0, trained.tail()
    dumps = tmp_path / "run" / "val"
    before, after = said(dumps / "0.jsonl"), said(dumps / "2.jsonl")
    assert before != after

    checkpoint, model = tmp_path / "checkpoint", tmp_path / "model"
    row = evaluate(assets, checkpoint, "--checkpoint", str(tmp_path / "run" / "checkpoints"))
    assert said(checkpoint / "validation" / "2.jsonl") == after
    assert (checkpoint / "model-global_step_2" / "config.json").is_file(), "no model was named: merged of its parts"
    # The table calls a known data source as the paper does.
    assert (row["data_set"], row["questions"], row["rollouts"]) == ("NQ", str(QUESTIONS), str(4 * QUESTIONS))
    assert float(row["em"]) == pytest.approx(trained.steps[2]["val-aux/searchR1_nq/outcome/em/mean@4"])
    assert float(row["tool_execution"]) == pytest.approx(trained.steps[2]["val-aux/searchR1_nq/tool/used/mean@4"])
    assert (tmp_path / "run" / "checkpoints" / "global_step_2" / "actor").is_dir(), "nothing of the run is touched"

    row = evaluate(assets, model, "--model", str(assets / "policy"))
    assert said(model / "validation" / "0.jsonl") == before
    assert float(row["em"]) == pytest.approx(trained.steps[0]["val-aux/searchR1_nq/outcome/em/mean@4"])
