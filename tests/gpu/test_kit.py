"""Test the kit itself with tiny sizes and without a GPU: its counts, messages and comparisons."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import oracles
from tests.credit.batches import ON_ROWS
from tests.gpu import estimators, machine, measure, simulated
from tests.gpu.made import copied_grpo, make_rollouts

SMALL = (12, 96)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=machine.REPOSITORY, capture_output=True, text=True)


def test_made_rollouts_have_the_turns_they_say():
    rollouts = make_rollouts(*SMALL, turns=4)
    turns = [oracles.runs_of_ones(row) for row in rollouts.mask.tolist()]
    assert [len(row) for row in turns[::2]] == [4] * 6
    assert turns[-1] == [] and {len(row) for row in turns[1:-1:2]} <= {1, 2, 3, 4}
    for row, rewards in zip(turns, rollouts.rewards.tolist(), strict=True):
        assert {at for at, reward in enumerate(rewards) if reward} <= {turn[-1] for turn in row}
        assert sum(map(bool, rewards)) == len(row), "every turn is paid something"


@pytest.mark.parametrize(
    ("what", "trips"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.new_tensor([1.0]), 1),  # the next four as torch reports them: pytorch/pytorch#120996
        (lambda x: torch.tensor(3.14, device=x.device), 1),
        (lambda x: torch.tensor(3.14).to(x.device), 1),
        (lambda x: torch.full((), 3.14, device=x.device) + torch.ones((), device=x.device) * 3.14, 0),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), 0),
        (lambda x: x.repeat_interleave(torch.ones(3, device=x.device).long()), 1),
        (lambda x: x.repeat_interleave(torch.ones(3, device=x.device).long(), output_size=3), 0),
        (lambda x: torch.nonzero_static(x, size=3), 0),
        (lambda x: (x * 2 + 1).cumsum(0).where(x > 1, 0.0)[torch.arange(2, device=x.device)], 0),
    ],
)
def test_the_simulated_device_counts_what_waits(what, trips):
    with simulated.device() as counted:
        x = torch.tensor([0.0, 1.0, 2.0]).to(simulated.DEVICE)
        counted.clear()
        what(x)
        assert len(counted) == trips, counted


def test_what_is_not_for_the_host_fails_on_the_simulated_device():
    with simulated.device():
        x = torch.ones(3).to(simulated.DEVICE)
        assert not x.is_cpu
        with pytest.raises((TypeError, RuntimeError, NotImplementedError)):
            x.numpy()


@pytest.mark.parametrize("name", ON_ROWS)
def test_every_estimator_waits_once_and_gives_the_same_on_a_device(name):
    report = estimators.Report({})
    rollouts = make_rollouts(*SMALL, turns=4)
    for settings in estimators.SETTINGS.get(name, ({},)):
        got, same, waits = estimators._simulated(name, rollouts, settings)
        estimators._judge(report, name, estimators.call(name, rollouts, settings), got, same, waits)
        assert len(waits) == 1, waits
    assert report.failed == []


def test_a_difference_and_a_second_wait_fail():
    report, wanted = estimators.Report({}), (torch.ones(2),)
    estimators._judge(report, "good", wanted, (torch.ones(2) + 1e-6,), True, ["one"])
    assert report.failed == []
    estimators._judge(report, "far", wanted, (torch.ones(2) + 1e-4,), True, ["one"])
    estimators._judge(report, "slow", wanted, wanted, True, ["a", "b", "b"])
    estimators._judge(report, "loose", wanted, wanted, False, [])
    assert [line.split(":")[0] for line in report.failed] == ["far", "slow", "loose"]
    assert "3 times" in report.failed[1] and "1 x a, 2 x b" in report.failed[1]


@pytest.mark.imports_verl
def test_the_table_adds_up(capsys, tmp_path):
    report = estimators.Report({"device": "CPU"})
    estimators.check_times(report, "cpu", (SMALL,), repeats=1)
    assert {row["name"] for row in report.times} >= {*ON_ROWS}
    for row in report.times:
        # Mask of 8 bytes; rewards, values (turn_td: two) and one or two results of 4: by hand for the four kinds.
        token = {"turn_reinforce_pp": 20, "turn_gae": 24, "bilevel_gae": 24, "turn_td": 28}.get(row["name"], 16)
        assert row["bytes"] == token * SMALL[0] * SMALL[1]
        assert row["seconds"] > 0 and row["copy_seconds"] > 0 and row["peak_tensors"] >= 1
    assert report.times[0]["grpo"] == 1
    assert estimators.finish(report, tmp_path / "out", "gpu.json") == 0
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())["times"] == report.times
    printed = capsys.readouterr().out
    assert all(name in printed for name in ON_ROWS) and "everything that ran holds" in printed


def test_a_failure_is_the_exit_code_and_what_was_not_run_is_said(capsys):
    report = estimators.Report({}, failed=["turns are upside down"], not_run=["vLLM, because it is not here"])
    assert estimators.finish(report, None, "") == 1
    printed = capsys.readouterr().out
    assert "FAILED: turns are upside down" in printed and "not run: vLLM, because it is not here" in printed


@pytest.mark.imports_verl
def test_a_size_that_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(estimators, "_free_on_host", lambda: 10**6)
    report = estimators.Report({})
    estimators.check_times(report, "cpu", ((1024, 8192),), repeats=1)
    assert report.times == []
    assert report.not_run[-1] == "times at (1024, 8192), because 0.5 GB are needed and 0.0 GB are free"


def test_peak_of_a_call_is_what_it_makes():
    x = torch.ones(1000)
    assert measure.peak_bytes(lambda: x + 1, "cpu") >= 4000
    assert measure.peak_bytes(lambda: (x + 1) + 1, "cpu") >= 8000


def test_what_torch_reports_is_counted_and_silence_is_not_taken_for_none(monkeypatch):
    """Without a GPU, raise torch's warning by hand, with its own text (pytorch/pytorch#120996)."""
    for name in ("synchronize", "get_sync_debug_mode", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)

    def waits_twice() -> None:
        for text in ("called a synchronizing CUDA operation (Triggered internally at x.cpp:147.)", "another", None):
            warnings.warn(text or "called a synchronizing CUDA operation", stacklevel=1)

    assert measure._reports(waits_twice) == 2
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.tensor(1.0))
    with pytest.raises(measure.CannotCount, match="does not report"):
        measure.count_synchronisations(waits_twice)


@pytest.mark.imports_verl
def test_the_copied_formula_is_verls_own():
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    rollouts = make_rollouts(32, 64, turns=4, seed=1)
    index = np.array([*rollouts.index[:-1], "alone"], dtype=object)
    expected = core_algos.compute_grpo_vectorized_outcome_advantage(rollouts.rewards, rollouts.mask, index)
    got = copied_grpo(rollouts.rewards, rollouts.mask, index)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


ALLOWED = "torch torchgen functorch numpy typing_extensions sympy mpmath networkx jinja2 markupsafe filelock fsspec"

ONLY_TORCH = f"""
import sys
from importlib.machinery import PathFinder
allowed = set(sys.stdlib_module_names) | set({ALLOWED!r}.split()) | {{"verl_mtgrpo", "tests"}}
class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.split(".")[0]
        here = top in allowed or top.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if here else None
sys.meta_path = [Only if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = ["kit", "--device", "cpu", "--repeats", "1", "--sizes", "16x64"]
from tests.gpu import estimators
estimators.check_agreement.__defaults__ = ((8, 64),)
sys.exit(estimators.main())
"""


@pytest.mark.process
def test_the_first_part_needs_torch_and_numpy_and_nothing_else():
    done = python(ONLY_TORCH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x copy of verl's grpo" in done.stdout
    assert "not run: times beside verl's own grpo, because verl is not installed" in done.stdout


@pytest.mark.process
def test_without_a_gpu_it_says_what_it_needs():
    if not machine.missing_for_cuda():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu"], cwd=machine.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    for part in ("needs:", "NVIDIA GPU with its driver", "tests/gpu/README.md", "make test-gpu DEVICE=cpu"):
        assert part in done.stdout
    assert not done.stderr


def test_without_torch_it_says_so(capsys, monkeypatch):
    find_spec = machine.importlib.util.find_spec
    hidden = {"torch", "numpy"}
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))
    for device in ("cuda", "cpu"):
        assert machine.say_what_is_missing(device)
        printed = capsys.readouterr().out
        assert "torch 2.11 or newer" in printed and "numpy: not installed" in printed and sys.executable in printed


def test_what_torch_lacks_is_told_apart(monkeypatch):
    monkeypatch.setattr(machine, "_output", lambda *_: "GPU 0: NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", None)
    (line,) = machine.missing_for_cuda()
    assert "built without" in line
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (line,) = machine.missing_for_cuda()
    assert "built for CUDA 13.0" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.missing_for_cuda() == []


def test_missing_wheels_have_their_names(monkeypatch):
    absent = {"hydra", "ray"}
    find_spec = machine.importlib.util.find_spec
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name))
    assert "ray" in machine.missing_for_verl() and "hydra-core" in machine.missing_for_verl()


def test_what_is_chosen_without_vllm_and_without_a_tokenizer_is_said(tmp_path, monkeypatch):
    from tests.gpu import verl_runs

    report = estimators.Report({})
    monkeypatch.setattr(machine, "has_vllm", lambda: False)
    monkeypatch.setattr(verl_runs, "REAL_TOKENIZER", tmp_path / "absent")
    assert verl_runs.choose_server(report, "cuda", None) == "hf"
    assert verl_runs.choose_tokenizer(report, "cuda", None) is None
    assert [line.split(", because")[0] for line in report.not_run] == [
        "verl's vLLM server",
        "the real Qwen3 tokenizer",
    ]
    monkeypatch.setattr(machine, "has_vllm", lambda: True)
    assert verl_runs.choose_server(report, "cuda", None) == "vllm"
    assert verl_runs.choose_tokenizer(report, "cuda", str(tmp_path)) == tmp_path


def steps(**change: float) -> list[dict[str, float]]:
    good = {
        "training/rollout_probs_diff_mean": 1e-4,
        "training/rollout_probs_diff_max": 5e-3,
        "tool/used": 0.5,
        "critic/advantages/max": 1.0,
        "timing_s/step": 2.0,
    }
    return [{**good, **change}] * 4


@pytest.mark.parametrize(
    ("server", "change", "says"),
    [
        ("hf", {}, ""),
        ("hf", {"training/rollout_probs_diff_max": 2e-2}, "differ by 2.0e-02"),
        ("vllm", {"training/rollout_probs_diff_max": 2e-2}, ""),  # a token in bfloat16
        ("vllm", {"training/rollout_probs_diff_mean": 2e-2}, "differ by 2.0e-02"),
        ("hf", {"training/rollout_probs_diff_max": float("nan")}, "differ by nan"),
        ("hf", {"tool/used": 0.0}, "no rollout used the tool"),
        ("hf", {"critic/advantages/max": 0.0}, "no advantage"),
    ],
)
def test_what_our_run_is_held_to(server, change, says):
    from tests.gpu import verl_runs

    report = estimators.Report({})
    verl_runs._judge_ours(report, steps(**change), SimpleNamespace(server=server))
    assert bool(report.failed) == bool(says) and says in " ".join(report.failed)


def test_step_times_stand_side_by_side(capsys):
    from tests.gpu import verl_runs

    report = estimators.Report({})
    verl_runs._compare(report, steps(), steps(**{"timing_s/step": 1.0}))
    assert report.times == [{"name": "timing_s/step", "ours": 2.0, "stock": 1.0}]
    assert "2.000 s    1.000 s     2.00" in capsys.readouterr().out
    assert "timing_s/adv beside stock, because a run did not log it" in report.not_run
