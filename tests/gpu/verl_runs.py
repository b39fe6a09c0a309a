"""Run the kit's second part: verl's real trainer with FSDP on the GPU, ours and stock ``tool_agent`` with ``grpo``."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu import machine
from tests.gpu.assets import QUESTIONS, REAL_TOKENIZER, make_assets
from tests.gpu.estimators import Report

ROLLOUTS = 8
CLOSE = 1e-2
WARM = 2
"""First steps that are not timed, because they compile kernels and allocate memory."""
TIMES = ("timing_s/step", "timing_s/gen", "timing_s/old_log_prob", "timing_s/adv", "timing_s/update_actor")
DIFFERENCES = ("training/rollout_probs_diff_mean", "training/rollout_probs_diff_max")
_ROLLOUT, _TURNS = "actor_rollout_ref.rollout", "actor_rollout_ref.rollout.multi_turn"


@dataclass(frozen=True)
class Settings:
    """The settings of the two runs.

    Attributes:
        device: "cuda" or "cpu".
        server: What generates: "vllm", or "hf", the built-in server on the device.
        steps: Of each run.
        tokenizer: Folder of a real tokenizer; None: the made one.
        timeout: Seconds after which a run is killed.
        logs: Folder that gets the whole output of each run; None: a failed run's end is printed, no more.
    """

    device: str
    server: str
    steps: int
    tokenizer: Path | None
    timeout: float
    logs: Path | None = None


def choose_server(report: Report, device: str, wanted: str | None) -> str:
    """Return verl's vLLM if it can run, otherwise the built-in server; record what is not run."""
    if wanted:
        return wanted
    if device == "cuda" and machine.has_vllm():
        return "vllm"
    reason = "vllm is not installed" if device == "cuda" else "its server here would be the CPU's: make test-vllm"
    report.not_run.append(f"verl's vLLM server, because {reason}; the built-in server generates instead")
    return "hf"


def choose_tokenizer(report: Report, device: str, wanted: str | None) -> Path | None:
    """Return the real tokenizer on a GPU if there is one, otherwise the made-up one."""
    if wanted == "made":
        return None
    if wanted:
        return Path(wanted).resolve()
    if device == "cpu":
        report.not_run.append(
            "the real Qwen3 tokenizer, because logits over its 150,000 tokens take minutes and gigabytes on a CPU "
            f"(--tokenizer {REAL_TOKENIZER} does it all the same); the made tokenizer instead"
        )
        return None
    if REAL_TOKENIZER.exists():
        return REAL_TOKENIZER
    report.not_run.append(
        f"the real Qwen3 tokenizer, because {REAL_TOKENIZER} is not there (--tokenizer FOLDER names another place); "
        "the made tokenizer instead"
    )
    return None


def run(report: Report, settings: Settings) -> None:
    """Do both runs, one after the other, and print the table."""
    if missing := machine.missing_for_verl():
        report.not_run.append(f"the run with verl, because {missing} (tests/gpu/README.md lists the wheels)")
        return
    with tempfile.TemporaryDirectory(prefix="mtgrpo-gpu-") as name:
        folder = Path(name)
        print(f"\nverl's trainer: {settings.steps} steps each, {settings.server} generates, {settings.device}")
        assets = make_assets(folder / "assets", tokenizer=settings.tokenizer, device=settings.device)
        rows = {kind: _train(report, kind, folder / kind, assets, settings) for kind in ("ours", "stock")}
    ours, stock = rows["ours"], rows["stock"]
    if ours:
        _judge_ours(report, ours, settings)
    if ours and stock:
        _compare(report, ours, stock)


def _train(report: Report, kind: str, folder: Path, assets: Path, settings: Settings) -> list[dict[str, Any]]:
    """Return the metrics of each step; if the run failed, return none and record the failure."""
    from tests.training import train

    groups = ("+mtgrpo_cpu=default", *(("+mtgrpo=mt_grpo",) if kind == "ours" else ()))
    overrides = [*_shared(assets, settings), *(() if kind == "ours" else _stock())]
    result = train(folder, overrides, groups=groups, env=_environment(assets, settings), timeout=settings.timeout)
    if settings.logs:
        settings.logs.mkdir(parents=True, exist_ok=True)
        (settings.logs / f"verl-{kind}.log").write_text(result.log, encoding="utf-8")
    print(f"  {kind}: {len(result.steps)} steps in {result.seconds:.0f} s, start included")
    if result.returncode or len(result.steps) < settings.steps:
        lines = result.tail(40)
        print(lines)
        what = "killed at its time limit" if "killed after" in lines else f"exit code {result.returncode}"
        report.failed.append(f"the {kind} run ended after {len(result.steps)} of {settings.steps} steps: {what}")
        return []
    steps = [result.steps[number] for number in sorted(result.steps)]
    report.runs.append({"kind": kind, "server": settings.server, "seconds": result.seconds, "steps": steps})
    return steps


def _environment(assets: Path, settings: Settings) -> dict[str, str]:
    found = {"MTGRPO_INDEX": str(assets / "index"), "VERL_PLATFORM": "cpu" if settings.device == "cpu" else "nvidia"}
    # The plugin by name: a machine that was only given PYTHONPATH has no entry point. Loading it twice does no harm.
    modules = ["verl_mtgrpo.plugin"]
    if settings.server == "hf":
        modules.append("tests.gpu.hf_server")
        found["MTGRPO_KIT_DEVICE"] = settings.device
    return {**found, "VERL_USE_EXTERNAL_MODULES": ",".join(modules)}


def _shared(assets: Path, settings: Settings) -> list[str]:
    """Return the overrides of both runs: the CPU group's small settings, on the device."""
    engine = {"hf": "hf_kit", "vllm": "vllm"}[settings.server]
    tokens = 1024 if settings.tokenizer else 64
    overrides = [
        f"trainer.device={settings.device}",
        f"{_ROLLOUT}.name={engine}",
        f"actor_rollout_ref.model.path={assets / 'policy'}",
        f"data.train_files={assets / 'train.parquet'}",
        f"data.val_files={assets / 'val.parquet'}",
        f"data.train_batch_size={QUESTIONS}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={QUESTIONS}",
        "actor_rollout_ref.actor.optim.lr=1e-5",
        f"data.max_prompt_length={tokens}",
        f"data.max_response_length={max(160, tokens // 2)}",
        f"{_ROLLOUT}.n={ROLLOUTS}",
        f"{_TURNS}.enable=True",
        f"{_TURNS}.max_assistant_turns=2",
        f"trainer.total_training_steps={settings.steps}",
        f"trainer.total_epochs={settings.steps}",
        "trainer.test_freq=-1",
        "trainer.val_before_train=False",
        "trainer.resume_mode=disable",
        "trainer.save_freq=-1",
    ]
    if settings.server == "vllm":
        # Weights through shared memory, eager: the start is most of such a short run.
        overrides += [f"{_ROLLOUT}.load_format=auto", f"{_ROLLOUT}.enforce_eager=True"]
        overrides += [f"{_ROLLOUT}.gpu_memory_utilization=0.3", f"{_ROLLOUT}.max_model_len=2048"]
    return overrides


def _stock() -> list[str]:
    """Return the overrides for verl's own loop, trainer, reward manager and grpo, with our run's tool and task."""
    return [
        "algorithm.adv_estimator=grpo",
        f"{_ROLLOUT}.agent.default_agent_loop=tool_agent",
        f"{_TURNS}.format=hermes",
        f"{_TURNS}.tool_config_path={machine.REPOSITORY / 'verl_mtgrpo/config/tools/search_tool.yaml'}",
        f"{_TURNS}.max_tool_response_length=4096",
        f"{_TURNS}.tool_response_truncate_side=right",
        f"reward.custom_reward_function.path={machine.REPOSITORY / 'recipes/migrate/reward.py'}",
        "reward.custom_reward_function.name=compute_score",
        "trainer.v1.sampler.custom_sampler.path=pkg://tests.gpu.stock",
        "trainer.v1.sampler.custom_sampler.name=OftenLookingReplayBuffer",
    ]


def _judge_ours(report: Report, steps: list[dict[str, Any]], settings: Settings) -> None:
    mean, largest = (max(step[name] for step in steps) for name in DIFFERENCES)
    print(f"  probability of a token, rollout against actor: mean differs by {mean:.1e}, one token by {largest:.1e}")
    # One token of a server that computes in bfloat16 may be further off; in float32 none is.
    checked = mean if settings.server == "vllm" else largest
    if not checked < CLOSE:
        report.failed.append(
            f"rollout and actor differ by {checked:.1e} in the probability of a token, allowed {CLOSE}"
        )
    if not any(step.get("tool/used", 0) > 0 for step in steps):
        report.failed.append("our run: no rollout used the tool, so the second turn was never exercised")
    if not any(step["critic/advantages/max"] > 0 for step in steps):
        report.failed.append("our run: no advantage was above 0")


def _compare(report: Report, ours: list[dict[str, Any]], stock: list[dict[str, Any]]) -> None:
    """Return the median of each part of a step."""
    warm = min(WARM, len(ours) - 1)
    print(f"  median of {len(ours) - warm} steps, the first {warm} left out   ours     stock   ours / stock")
    for name in TIMES:
        pair = [[step[name] for step in steps[warm:] if name in step] for steps in (ours, stock)]
        if not all(pair):
            report.not_run.append(f"{name} beside stock, because a run did not log it")
            continue
        a, b = map(statistics.median, pair)
        report.times.append({"name": name, "ours": a, "stock": b})
        print(f"  {name:44s} {a:8.3f} s {b:8.3f} s {a / b:8.2f}")
