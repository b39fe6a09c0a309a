"""examples/roles: what the policies are warmed up on is what the roles read, and the runs are complete."""

from __future__ import annotations

import random
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

from omegaconf import OmegaConf

from tests.demo.runs import assets_below
from tests.report.made import train_row, validation_data, write_rows
from verl_mtgrpo.demo import runs
from verl_mtgrpo.demo.assets import DemoAssets
from verl_mtgrpo.demo.lake import LakeAssets
from verl_mtgrpo.demo.runs import RunPlan, RunResult, train_to_end
from verl_mtgrpo.demo.world import WorldSize, build_world
from verl_mtgrpo.report.metrics import RunMetrics
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.render import render_passages
from verl_mtgrpo.roles.prompts import Said, fill

FOLDER = Path(__file__).parent.parent / "examples" / "roles"


@pytest.fixture(scope="module")
def example() -> Any:
    """The three files, each as a namespace."""
    found = {}
    for name in ("search", "talk", "run"):
        sys.modules.pop(f"roles_{name}", None)
        found[name] = SimpleNamespace(**runpy.run_path(str(FOLDER / f"{name}.py"), run_name=f"roles_{name}"))
    return SimpleNamespace(**found)


@pytest.mark.heavy
def test_both_roles_are_shown_what_the_agent_loop_shows_them(example, tmp_path: Path):
    size = WorldSize(
        entities_per_kind=8, famous_per_kind=0, famous_share=0.0, hop_shares={}, train_questions=24, val_questions=4
    )
    world = build_world(0, size)
    index = BM25Index.build(world.passages, tmp_path / "index", source="test", analyser="plain")
    roles = example.search.Roles(world, index, k=2, template="{title}: {text}", rng=random.Random(0))
    questions = {question.text: question for question in world.questions}
    kinds: Counter[str] = Counter()
    for _ in range(60):
        shown, said = (message["content"] for message in roles.habit(example.search.SETTINGS.habits).messages)
        question, *results = shown.split("\n\n")
        if not results:
            kinds["call"] += said.startswith("<tool_call>")
            kinds["good call"] += questions[question].queries[0] in said
            continue
        text = fill(example.run.SEARCH["answerer"]["prompt"], question, {"rewriter": Said("", results[0])})
        assert shown == text
        kinds["answer"] += "So " in said
        kinds["right"] += f"<answer> {questions[question].answer}</answer>" in said
        good = render_passages(roles.look(questions[question].queries[0]), template="{title}: {text}")
        kinds["good result"] += results[0] == good
    assert kinds["call"] + kinds["answer"] == 60 and 15 < kinds["call"] < 45
    assert 0 < kinds["good call"] < kinds["call"], "the rewriter has something to learn"
    assert 0 < kinds["right"] < kinds["good result"] < kinds["answer"], "and so has the answerer"
    for _ in range(20):
        drill = roles.drill()
        assert drill.tools == drill.messages[1]["content"].startswith("<tool_call>")


def test_a_conversation_is_demonstrated_from_both_sides(example):
    talk, sides = example.talk.Talk(random.Random(0)), Counter()
    for _ in range(60):
        messages = talk.drill().messages
        assert messages[0]["content"].startswith(example.talk.QUESTION)
        said = [message["content"] for message in messages if message["role"] == "assistant"]
        sides["planner" if said[0] in example.talk.PLANS else "worker"] += 1
        assert all(one in (*example.talk.PLANS, example.talk.ASKS) or one.startswith("<answer>") for one in said)
    assert min(sides.values()) > 15


@pytest.mark.compose
@pytest.mark.parametrize(("method", "preset"), [("mhgpo", "mhgpo"), ("rema", "rema"), ("resume", "mhgpo")])
def test_the_runs_compose_and_are_complete(example, tmp_path: Path, monkeypatch, method, preset):
    pytest.importorskip("verl")
    from tests.composed import composed
    from verl_mtgrpo.integration.preflight import check_run
    from verl_mtgrpo.integration.roles import cast_of

    files = [tmp_path / name for name in ("policy", "train.parquet", "val.parquet")]
    made = (
        LakeAssets(*files, {}) if method == "rema" else DemoAssets(files[0], tmp_path, *files[1:], tmp_path / "t", {})
    )
    plan_of = example.run.plan_of
    monkeypatch.setitem(plan_of.__globals__, "load_file", lambda path: SimpleNamespace(
        prepare=lambda out, seed: made, ROLES=example.talk.ROLES
    ))  # fmt: skip
    plan = plan_of(method, tmp_path, seed=3, steps=None, paid=method == "mhgpo")
    assert (plan.preset, plan.settings.steps) == (preset, {"mhgpo": 20, "rema": 5, "resume": 10}[method])
    overrides = plan.command(metrics=tmp_path / "m", validate_first=True).overrides
    run = composed(*overrides, preset=preset)
    OmegaConf.resolve(run)
    check_run(run)
    cast = cast_of(run)
    assert cast.names == (["planner", "worker"] if method == "rema" else ["rewriter", "answerer"])
    if method != "rema":
        assert cast.roles["rewriter"].reward.endswith("paid_for_hits" if method == "mhgpo" else "watched")


@pytest.mark.process
@pytest.mark.parametrize("method", ["mhgpo", "rema"])
def test_a_run_is_finished_without_what_only_searching_roles_are_measured_by(example, tmp_path, monkeypatch, method):
    """verl's validation has the metrics of the role that answers: no tool/used."""
    settings = replace(example.run.Settings(), steps=2)
    plan = RunPlan(tmp_path / "run", method, 0, assets_below(tmp_path), settings)

    def verl(command: Any, **_: object) -> int:
        validated = [validation_data("w", 2, outcome__f1=0.1 * step) for step in (0, 2)]
        rows = [{"step": 0, "data": validated[0]}, train_row(1), {"step": 2, "data": validated[1]}]
        write_rows(Path(command.env["VERL_FILE_LOGGER_PATH"]), rows)
        return 0

    monkeypatch.setattr(runs, "run_train_command", verl)
    assert train_to_end(plan, label="run").metrics.validation["outcome/f1"] == {0: 0.0, 2: 0.2}


def test_the_table_has_the_first_and_the_last_steps(example, tmp_path: Path):
    f1 = [0.1, 0.3, 0.9, 0.5, 0.7]
    settings = replace(example.run.Settings(), steps=5)
    assets = LakeAssets(tmp_path, tmp_path, tmp_path, {})
    plan = RunPlan(folder=tmp_path, preset="mhgpo", seed=1, assets=assets, settings=settings)
    first, short = (
        RunResult(RunMetrics({"outcome/f1": dict(enumerate(values, start=1))}, {}), 61.0, 2, "source", reused=False)
        for values in (f1, f1[:3])
    )
    assert example.run.row(plan, first)[:4] == ["1", "5", "0.200 to 0.600", "- to -"]
    (axes,) = example.run.draw([first, short], [1, 2]).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [f1, f1[:3]], "one line per seed; no line for no values"
