"""The short examples do what they say. (tests/integration/test_own_parts.py trains with three of them at once.)"""

from __future__ import annotations

import asyncio
import os
import random
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.report.made import dump_row, transcript, write_rows
from verl_mtgrpo.credit import registry
from verl_mtgrpo.report.rollouts import credit_rollouts, read_dump
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, load_preset

EXAMPLES = Path(__file__).parent.parent / "examples" / "extend"
REWARD = f"{EXAMPLES / 'own_turn_reward.py'}:evidence"


def example(name: str) -> Any:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / name)))


# ---- a turn reward


def test_the_turn_reward():
    hit = ToolCall("search", "{}", "It is Oslo.", reward=0.25)
    failed = ToolCall("search", "{", "Error", ok=False)
    turns = (
        Turn("x", (0, 1), (ToolCall("search", "{}", "Nothing."), failed)),
        Turn("x", (2, 3), (hit,)),
        Turn("x", (4, 5), (hit,)),
        Turn("<answer>the Oslo</answer>", (6, 7)),
    )
    rewards = load_preset(REWARD)(Transcript(turns, "answered"), {"target": ["Oslo"]})
    assert rewards.turns == pytest.approx((-0.1, 0.5 + 0.25, 0.25, 0.0))
    assert (rewards.outcome, rewards.components) == (1.0, {"tool/hit": 1.0, "outcome/em": 1.0})


def test_the_turn_reward_is_short():
    (_, _, function) = (EXAMPLES / "own_turn_reward.py").read_text().partition("def evidence")
    assert len(function.splitlines()) <= 20


# ---- a tool


@pytest.fixture
def calculator():
    """The tool as verl loads it, and verl's registry as it was."""
    function_tool = pytest.importorskip("verl.tools.function_tool")
    (tool,) = function_tool.load_function_tools_from_path(str(EXAMPLES / "own_tool.py"))
    yield tool
    function_tool.FUNCTION_TOOL_REGISTRY.pop(tool.name)
    function_tool._LOADED_FUNCTION_TOOL_PATHS.clear()


@pytest.mark.imports_verl
@pytest.mark.parametrize(
    ("expression", "text", "worth", "ok"),
    [
        ("(3 + 4) * 2", "14", 0.2, True),
        ("1 / 8 - 2", "-1.875", 0.2, True),
        ("7", "7", 0.0, True),
        ("-7", "-7", 0.0, True),
        ("1 / 0", "Error: float division by zero", 0.0, False),
        ("2 ** 9", "Error: BinOp is not arithmetic", 0.0, False),
        ("__import__('os').getpid()", "Error: Call is not arithmetic", 0.0, False),
        ("True + 1", "Error: Constant is not arithmetic", 0.0, False),
    ],
)
def test_the_tool(calculator, expression: str, text: str, worth: float, ok: bool):
    response, reward, info = asyncio.run(calculator.call({"expression": expression}))
    assert (response.text, reward, info["ok"]) == (text, worth, ok)


@pytest.mark.imports_verl
@pytest.mark.parametrize("expression", ["3 +", "(" * 5000, None, "1\0"])
def test_the_tool_answers_whatever_a_model_writes(calculator, expression: Any):
    response, _, info = asyncio.run(calculator.call({"expression": expression}))
    assert response.text.startswith("Error: ") and not info["ok"]


@pytest.mark.compose
def test_what_the_tool_pays_reaches_the_turn_through_verls_agent_loop(calculator):
    from tests.agent_loops import final_answer, loop_config, run
    from verl_mtgrpo.demo.policy import build_tokenizer
    from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop

    call = '<tool_call>{"name": "calculate", "arguments": {"expression": "(3 + 4) * 2"}}</tool_call>'
    tokenizer = build_tokenizer([call, "Error <answer>14</answer>"], [])
    script = [call, call.replace("(3 + 4) * 2", "x"), final_answer("14")]
    output = run(TurnToolAgentLoop, loop_config(), tokenizer, [calculator], script=script, response_length=400)
    rollout = output.extra_fields["transcript"]
    first, second = (turn.tool_calls[0] for turn in rollout.turns[:2])
    assert (first.result, first.reward, first.ok) == ("14", 0.2, True)
    assert (second.reward, second.ok, second.error_kind) == (0.0, False, "bad_arguments")
    rewards = load_preset(REWARD)(rollout, {"target": ["14"]})
    assert rewards.turns == pytest.approx((0.5 + 0.2, -0.1, 0.0))
    assert rewards.outcome == 1.0


# ---- an estimator


def test_the_estimator(monkeypatch: pytest.MonkeyPatch):
    """Returns-to-go by hand: turn 1 of the four rollouts 3, 0, 0, 0; turn 2 of the two that have one 1 and 0.

    Turn 1: mean 0.75, std 1.5, so 1.5 (bounded by 1) and three times -0.5. Turn 2: ±0.5 / sqrt(0.5) = ±0.707.
    """
    monkeypatch.setattr(registry, "ESTIMATORS", dict(registry.ESTIMATORS))
    estimator = example("own_estimator.py").bounded_returns
    assert registry.ESTIMATORS["bounded_returns"].function is estimator
    rewards = torch.tensor([[2.0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    mask = torch.tensor([[1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0]])
    half = 0.5**0.5
    by_hand = [[1.0, 0, half], [-0.5, 0, -half], [-0.5, 0, 0], [-0.5, -0.5, 0]]
    advantages, returns = estimator(rewards, mask, ["q"] * 4)
    assert torch.allclose(advantages, torch.tensor(by_hand), atol=1e-5)
    assert advantages is returns
    assert estimator(rewards, mask, ["q"] * 4, bound=9.0)[0][0, 0].item() == pytest.approx(1.5, abs=1e-5)
    discounted, _ = estimator(rewards, mask, ["q"] * 4, discount=0.0, bound=9.0)
    assert discounted[0, 0].item() == pytest.approx(1.5, abs=1e-5), "2, 0, 0, 0 normalise to the same"


# ---- a dump


def test_the_arithmetic_of_the_dump_is_the_estimators(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = example("read_dump.py")
    rng = random.Random(0)
    rows = []
    for question in range(6):
        for session in range(4):
            turns = rng.randint(1, 3)
            rewards = [rng.random() for _ in range(turns)]
            said = transcript("Vel", searches=["Orrin"] * (turns - 1))
            rows.append(dump_row(f"q{question}", session, said, rewards, **{"outcome/dropped": 0.0}))
    lost = Transcript((Turn("x", (0, 1)),), "outage")
    rows.append(dump_row("q0", 4, lost, [0.0], **{"outcome/dropped": 1.0}))
    path = write_rows(tmp_path / "3.jsonl", rows)
    credited = credit_rollouts(read_dump(path))
    for question in range(6):
        items = [one for one in credited if one.rollout.group == f"q{question}" and one.rollout.dropped is None]
        group = [list(one.rollout.turn_rewards) for one in items]
        for number, one in enumerate(items):
            got = [turn["advantage"] for turn in module.explain(group, number)]
            assert got == pytest.approx(one.advantages, abs=1e-4)
    module.main(str(path))
    shown = capsys.readouterr().out
    assert "Which river runs by Orrin?" in shown and "rollout 3" in shown and "rollout 4" not in shown
    assert " = turns " in shown and "-> Doc 1 (Title: Orrin) Vel is a river." in shown


@pytest.mark.process
def test_the_dump_reader_needs_no_package(tmp_path: Path):
    path = write_rows(tmp_path / "3.jsonl", [dump_row("q", 0, transcript("Vel"), [1.0], **{"outcome/dropped": 0.0})])
    done = subprocess.run(
        [sys.executable, "-S", str(EXAMPLES / "read_dump.py"), str(path)],  # -S: no site-packages
        capture_output=True, text=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "+1.00 paid, advantage +1.00 = turns +0.00 + outcome +1.00" in done.stdout


# ---- an existing recipe


def recipe(tmp_path: Path, *more: str) -> Any:
    """Return the config that verl would get, composed from the script's arguments."""
    pytest.importorskip("verl")
    import verl_mtgrpo.plugin  # noqa: F401  (verl loads it in a run)
    from tests.composed import composed

    say = tmp_path / "say"
    say.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    say.chmod(0o755)
    done = subprocess.run(
        ["bash", str(EXAMPLES / "existing_recipe.sh"), *more],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHON": str(say)},
    )  # fmt: skip
    dash_m, module, *overrides = done.stdout.splitlines()
    assert (dash_m, module) == ("-m", "verl.trainer.main_ppo")
    return composed(*overrides)


@pytest.mark.process
@pytest.mark.compose
def test_three_overrides_turn_the_recipe_into_mt_grpo(tmp_path: Path):
    before = recipe(tmp_path)
    assert before.algorithm.adv_estimator == "grpo"
    header = [line.removeprefix("#") for line in (EXAMPLES / "existing_recipe.sh").read_text().splitlines()]
    start = next(n for n, line in enumerate(header) if "hydra.searchpath" in line)
    words = shlex.split("\n".join(header[start : start + 4]).replace("\\\n", " "))
    after = recipe(tmp_path, *words[2:])
    assert len(words[2:]) == 4, "the search path and three overrides"
    assert (after.algorithm.adv_estimator, after.algorithm.turn.turn_coef) == ("mt_grpo", 1.0)
    assert after.reward.reward_manager.name == "mtgrpo"
    assert after.actor_rollout_ref.rollout.agent.default_agent_loop == "mtgrpo_tool_agent"
    assert after.actor_rollout_ref.rollout.multi_turn.tool_config_path == "tools.yaml", "the recipe's own tools stay"
    from verl_mtgrpo.integration.preflight import check_run

    check_run(after)


# ---- where a run stands on the laboratory's map


def test_the_point_of_a_dump(tmp_path: Path):
    """Four of ten rollouts answer by heart, one rightly; of six that call, one is broken and one asks yes or no."""
    heart = [{"tool/calls": 0, "tool/used": 0, "tool/hit": 0, "outcome/em": em} for em in (1, 0, 0, 0)]
    called = [
        {"tool/calls": 1, "tool/used": used, "tool/hit": hit, "outcome/em": em}
        for used, hit, em in ((0, 0, 0), (1, None, 1), (1, 0, 1), (1, 1, 1), (1, 1, 0), (1, 1, 0))
    ]
    script = SimpleNamespace(**runpy.run_path(str(EXAMPLES.parent / "learn" / "from_dump.py")))
    got = script.point([*heart, *called, {"outcome/dropped": 1}])
    assert got == pytest.approx({"heart": 1 / 4, "broken": 1 / 6, "good": 3 / 4, "read": 1 / 3, "use": 6 / 10})
    with pytest.raises(SystemExit, match="no rollout of the dump called the tool"):
        script.point(heart)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("", "is empty"),
        ('{"tool/calls": 1, "tool/used": 1, "outcome/em": 1}\n{"tool/ca', "line 2: not JSON, perhaps cut off"),
        ('{"outcome/dropped": 1}\n{"tool/calls": 1}\n', "without tool/used, outcome/em"),
    ],
)
def test_a_file_that_is_no_dump_is_named(tmp_path: Path, text: str | None, said: str):
    script = SimpleNamespace(**runpy.run_path(str(EXAMPLES.parent / "learn" / "from_dump.py")))
    file = tmp_path / "0.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit, match=said):
        script.read(str(file))
