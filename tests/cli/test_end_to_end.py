"""MT-PPO under verl's trainer, as `mtgrpo compare` starts it: stopped by Ctrl-C, then resumed."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tests.demo.runs import SomeAssets
from tests.tiny_model import save_model
from tests.training import processes_that_mention
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.runs import RunPlan, checkpoint_step, train_to_end
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.report.rollouts import credit_rollouts, read_dump
from verl_mtgrpo.retrieval.bm25 import BM25Index

pytest.importorskip("verl")

pytestmark = [pytest.mark.process, pytest.mark.imports_verl]

_SETTINGS = dataclasses.replace(
    DemoSettings(), steps=6, prompts=16, rollouts=4, response_length=64, validation_samples=2, save_every=1
)

_CHILD = """
import pickle, sys
from verl_mtgrpo.demo.runs import train_to_end
train_to_end(pickle.load(open(sys.argv[1], "rb")), label="run")
"""


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    passages = [Passage(id=str(n), title=f"City {n}", text=f"City {n} lies on river {n}.") for n in range(20)]
    BM25Index.build(passages, tmp_path / "index", source="test")
    rows = [
        make_row(
            f"which river is city {n} on",
            [f"river {n}"],
            data_source="toy",
            index=n,
            split="train",
            id=str(n),
            system_prompt=None,
        )
        for n in range(20)
    ]
    write_parquet(rows, tmp_path / "train.parquet")
    write_parquet(rows[:4], tmp_path / "val.parquet")
    # One passage, so that a search result leaves room for an answer: the start of a run looks at that.
    tool_config = yaml.safe_load(files("verl_mtgrpo.config").joinpath("tools", "search_tool.yaml").read_text())
    tool_config["tools"][0]["config"]["k"] = 1
    (tmp_path / "tool.yaml").write_text(yaml.safe_dump(tool_config))
    assets = SomeAssets(
        policy=save_model(tmp_path / "policy"),
        index=tmp_path / "index",
        train_file=tmp_path / "train.parquet",
        val_file=tmp_path / "val.parquet",
        tool_config=tmp_path / "tool.yaml",
    )
    return RunPlan(tmp_path / "run", "mt_ppo", 0, assets, _SETTINGS)


@pytest.mark.verl
def test_trains_stops_cleanly_and_goes_on_where_it_stopped(plan: RunPlan, tmp_path: Path) -> None:
    _stop_after_first_checkpoint(plan, tmp_path)
    stopped = checkpoint_step(plan.folder)
    assert 1 <= stopped < _SETTINGS.steps  # a step takes about as long as a signal does to be heard
    assert processes_that_mention(str(tmp_path)) == []

    result = train_to_end(plan, label="run")
    assert result.starts == 2
    second_start = (plan.folder / "metrics-002.jsonl").read_text()
    assert f'"step":{stopped},' not in second_start and f'"step":{stopped + 1},' in second_start, "not trained again"
    train = result.metrics.train
    risen = _SETTINGS.lr * _SETTINGS.steps / _SETTINGS.lr_warmup
    assert train["actor/lr"][_SETTINGS.steps] == pytest.approx(risen), "its rise goes on where it stopped, too"
    # The KL penalty is subtracted from the rewards that the estimator sees; at first there is no KL.
    assert list(train["actor/reward_kl_penalty_coeff"].values()) == pytest.approx([0.001] * _SETTINGS.steps)
    penalty = train["actor/reward_kl_penalty"]
    assert abs(penalty[1]) < abs(penalty[_SETTINGS.steps])
    assert {"turn/1/reward", "tool/used", "outcome/em", "actor/grad_norm"} <= set(train)
    assert set(result.metrics.validation["tool/used"]) == {0, _SETTINGS.steps}
    credited = credit_rollouts(read_dump(plan.validation / f"{_SETTINGS.steps}.jsonl"))
    assert len(credited) == 4 * _SETTINGS.validation_samples
    assert processes_that_mention(str(tmp_path)) == []


def _stop_after_first_checkpoint(plan: RunPlan, tmp_path: Path) -> None:
    pickled = tmp_path / "plan"
    pickled.write_bytes(pickle.dumps(plan))
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(pickled)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 300
        while checkpoint_step(plan.folder) < 1:
            assert child.poll() is None, (plan.folder / "train-001.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "no checkpoint after 5 minutes"
            time.sleep(0.2)
        assert processes_that_mention(str(tmp_path)), "the probe finds what runs"
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(timeout=60)
