"""An estimator is added in one place, above its function, and whoever needs to know about it reads it there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.doctor.setups import doctor
from tests.report.made import training_row, transcript, write_rows
from verl_mtgrpo import config
from verl_mtgrpo.cli.compare import comparison_markdown
from verl_mtgrpo.cli.main import build_parser, main
from verl_mtgrpo.credit import ESTIMATORS, Estimator, register_estimator
from verl_mtgrpo.demo.runs import RunResult
from verl_mtgrpo.report.metrics import RunMetrics
from verl_mtgrpo.report.why import in_words

NAME = "first_turn_only"
MODULE = f"""
from verl_mtgrpo.credit import read_batch, register_estimator

@register_estimator(
    title="First turn only", words="What the first turn was paid; no other turn is credited.", compares_rollouts=False
)
def {NAME}(token_level_rewards, response_mask, index, *, weight=2.0):
    batch = read_batch(token_level_rewards, response_mask, index)
    advantage_BK = weight * batch.reward_BK
    advantage_BK[:, 1:] = 0.0
    return batch.advantages(advantage_BK)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that registers the estimator, on the path and not imported yet."""
    (tmp_path / "my_estimators.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_estimators"
    sys.modules.pop("my_estimators", None)
    ESTIMATORS.pop(NAME, None)
    if "verl" in sys.modules:
        from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

        ADV_ESTIMATOR_REGISTRY.pop(NAME, None)


@pytest.fixture
def added(module: str) -> Estimator:
    __import__(module)
    return ESTIMATORS[NAME]


def test_the_registry(added: Estimator) -> None:
    assert (added.name, added.fields, added.knobs) == (NAME, (), {"weight": 2.0})
    assert not added.compares_rollouts and not added.divides({})
    advantages, _ = added(torch.tensor([[0.5, 0.0, 1.0]]), torch.tensor([[1, 0, 1]]), ["q"])
    assert advantages.tolist() == [[1.0, 0.0, 0.0]]


def test_what_a_record_says_if_nothing_is_said() -> None:
    def plain(token_level_rewards, response_mask, index, values, *, scale="std"):
        return token_level_rewards, token_level_rewards

    try:
        assert register_estimator(plain) is plain
        record = ESTIMATORS["plain"]
        assert (record.title, record.words, record.fields, record.knobs) == ("plain", "", ("values",), {"scale": "std"})
        assert not record.compares_rollouts, "a critic is the baseline"
        assert record.divides({"scale": "std"}) and not record.divides({"scale": "none"})
    finally:
        del ESTIMATORS["plain"]


def test_the_choices_and_the_tables_of_compare(
    added: Estimator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare", "--methods", NAME, "ppo_or"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(asked)
    assert "mt_grpo_v1" in capsys.readouterr().err, "what can be compared is said"
    groups = Path(shutil.copytree(str(config.GROUPS), tmp_path / "groups"))
    (groups / f"{NAME}.yaml").write_text("# @package _global_\ndefaults: [_base, _self_]\n")
    monkeypatch.setattr(config, "GROUPS", groups)
    assert build_parser().parse_args(asked).methods == [NAME, "ppo_or"]
    run = RunResult(RunMetrics(train={}, validation={"tool/used": {0: 0.25, 2: 0.5}}), 90.0, 1, "0.1", reused=False)
    table = comparison_markdown(
        {NAME: {0: run}, "ppo_or": {0: run}, "mt_grpo": {0: run}}, {}, {"tool/used": "tool execution"}
    )
    assert table.startswith("# First turn only, PPO-OR, MT-GRPO\n")


def test_the_words_of_the_report(added: Estimator) -> None:
    assert in_words(NAME) == added.words == "What the first turn was paid; no other turn is credited."


@pytest.mark.process
def test_the_report_loads_the_modules_that_a_run_loads(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that has not imported the user's module, as `mtgrpo report` is."""
    row = training_row("p", 0, transcript("Vel"), [0.5], [1.0], estimator=NAME)
    dump, page = write_rows(tmp_path / "1.jsonl", [row]), tmp_path / "page.html"
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", module)
    assert main(["report", str(dump), "--out", str(page)]) == 0
    (line,) = (line for line in page.read_text().splitlines() if 'id="index"' in line)
    index = json.loads(line.partition(">")[2].rpartition("</script>")[0])
    assert index["estimators"][NAME]["words"].startswith("What the first turn was paid")


@pytest.mark.compose
@pytest.mark.parametrize(("compares", "status"), [(False, "ok"), (True, "fail")])
def test_the_doctor(
    compares: bool,
    status: str,
    module: str,
    healthy,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """One rollout per prompt is enough for an estimator that does not compare rollouts."""
    pytest.importorskip("verl")
    text = MODULE.replace("compares_rollouts=False", f"compares_rollouts={compares}")
    (tmp_path / "my_estimators.py").write_text(text)
    __import__(module)
    knobs = ("~algorithm.turn", "+algorithm.turn.weight=3")
    _, findings = doctor(capsys, healthy, f"algorithm.adv_estimator={NAME}", *knobs, "actor_rollout_ref.rollout.n=1")
    (found,) = [one for one in findings if one["check"] == "estimator"]
    assert found["status"] == status
    expected = "compares the rollouts of a prompt" if compares else f"{NAME} (weight 3), 1 rollout per prompt"
    assert expected in found["message"]
