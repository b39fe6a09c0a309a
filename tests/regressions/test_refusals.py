"""Test issue 21, D21, D22, D23 and F36: what the start of a run refuses, warns of and accepts.

Each case has a set-up (:class:`~tests.doctor.setups.Healthy` with one change), a check, and its expected finding.
Sources: `review-gpu.md` (by finding), issue 21 (by letter).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("verl")

from tests.doctor.setups import DATA, JUDGE, ROLLOUT, TURNS, dead_url
from tests.regressions.refusals import GROUPS, look, status
from tests.training import REPOSITORY
from verl_mtgrpo.data.rows import SYSTEM_PROMPTS
from verl_mtgrpo.demo.policy import CHAT_TEMPLATE
from verl_mtgrpo.doctor import setup
from verl_mtgrpo.doctor.checks import examine, named
from verl_mtgrpo.doctor.compose import CommandLine, compose_config
from verl_mtgrpo.doctor.setup import Setup

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.network, pytest.mark.compose]

QWEN3 = REPOSITORY.parent / "shared" / "data" / "tokenizers" / "qwen3"


def asks(question: str) -> Callable[[dict[str, Any]], Any]:
    """Return a change of a row: another question."""
    return lambda row: row["prompt"][-1].update(content=question)


# ---- D21 (review 6): text never refuses

SEES = ("data", "tools", "tokenizer", "prompts")
JSON_QUESTION = 'Who is older? {"name": "Ann", "born": 1950} or {"name": "Bob", "born": 1960}?'
SOUND = [
    ("6", "a question with JSON in it", "search_r1", asks(JSON_QUESTION)),
    ("6", "a question with JSON in it", "mtgrpo_xml", asks(JSON_QUESTION)),
    ("6", "a question about a tag of HTML", "hermes", asks("Which HTML element is <search> for?")),
    ("6", "a question about a POM of Maven", "hermes", asks("What does <tool>gradle</tool> mean in this POM?")),
    ("6", "a question about a tag of HTML", "mtgrpo_xml", asks("Which HTML element is <search> for?")),
    ("6", "no data_source", "hermes", lambda row: row.pop("data_source")),
]


@pytest.mark.parametrize(("number", "what", "spoken", "change"), SOUND)
def test_review_6_sound_rows_are_not_refused_nor_warned_of(number, what, spoken, change, healthy):
    file = healthy.questions("sound", change, format=spoken)
    found = look(healthy, f"{DATA}{file}", f"{TURNS}.format={spoken}", checks=SEES)
    assert [one for one in found if one.status != "ok"] == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # verl 0.9.1, utils/reward_score/__init__.py: default_compute_score chooses by data_source, else
        # NotImplementedError; trainer_base.py:1152 reports rows without one as "unknown".
        (("reward.turn.outcome=compute_score",), "fail"),
        (("reward.turn.outcome=compute_score", "reward.custom_reward_function.path=mine.py"), "ok"),
        (("reward.turn.preset=paper_v2",), "ok"),
        ((*JUDGE, "+reward.turn.judge.base_url=http://127.0.0.1:1/v1"), "ok"),
    ],
)
def test_review_6_data_source_is_for_verls_own_scorer(overrides, expected, healthy):
    file = healthy.questions("unnamed", lambda row: row.pop("data_source"))
    found = look(healthy, f"{DATA}{file}", *overrides, checks=["data"])
    assert status(found, "data") == expected
    assert expected == "ok" or "has no column data_source" in found[0].message


def test_review_6_a_reward_manager_of_ones_own_reads_what_it_likes(healthy):
    file = healthy.questions("own", lambda row: (row.pop("data_source"), row.pop("reward_model")))
    own = ("reward.reward_manager.source=importlib", "reward.reward_manager.name=Mine")
    assert status(look(healthy, f"{DATA}{file}", *own, checks=["data"]), "data") == "ok"


def instructed(text: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: row.update(prompt=[{"role": "system", "content": text}, row["prompt"][-1]])


def in_one_message(text: str) -> Callable[[dict[str, Any]], Any]:
    """Search-R1's layout: instructions and question in the user's message."""
    return lambda row: row.update(
        prompt=[{"role": "user", "content": f"{text} Question: {row['extra_info']['index']}?"}]
    )


OTHER_TOOL = SYSTEM_PROMPTS["mtgrpo_xml"].replace('"search"', '"wiki"')
TOLD = [
    # F36: rows that never say how to call, or say it for another format
    ("F36", "hermes rows in a search_r1 run", "search_r1", instructed(SYSTEM_PROMPTS["hermes"]), r"no <search> in"),
    ("F36", "no instruction", "mtgrpo_xml", lambda row: row["prompt"].pop(0), r"8 of the first 8 .*no <tool> in"),
    ("F36", "no instruction", "search_r1", lambda row: row["prompt"].pop(0), r"no <search> in"),
    (
        "6",
        "another format",
        "hermes",
        instructed(SYSTEM_PROMPTS["search_r1"]),
        r"format search_r1, but the run reads h",
    ),
    ("6", "another format", "search_r1", in_one_message(SYSTEM_PROMPTS["mtgrpo_xml"]), r"format mtgrpo_xml, but the r"),
    ("6", "another tool", "mtgrpo_xml", instructed(OTHER_TOOL), r"prompts call wiki, but the run has search"),
    # and rows that do
    ("F36", "Search-R1's layout", "search_r1", in_one_message(SYSTEM_PROMPTS["search_r1"]), None),
    ("F36", "the template shows the tools", "hermes", lambda row: row["prompt"].pop(0), None),
]


@pytest.mark.parametrize(("number", "what", "spoken", "change", "says"), TOLD)
def test_f36_what_prompts_say_of_calls_is_looked_for_and_refuses_nothing(number, what, spoken, change, says, healthy):
    file = healthy.questions("told", change, format=spoken)
    found = look(healthy, f"{DATA}{file}", f"{TURNS}.format={spoken}", checks=SEES)
    warned = [one for one in found if one.status != "ok"]
    assert [one.status for one in warned] == (["warn"] if says else [])
    assert not says or (re.search(says, warned[0].message) and warned[0].fix)


IGNORES_TOOLS = CHAT_TEMPLATE.replace("{%- if tools %}", "{%- if false %}")
OTHER_CALLS = CHAT_TEMPLATE.replace("<tool_call>", "<|python_tag|>").replace("</tool_call>", "")  # as in Llama 3.1


@pytest.mark.parametrize(
    ("template", "prompt", "says"),
    [
        (IGNORES_TOOLS, "Answer the question.", "prompts are the same with and without them"),
        (IGNORES_TOOLS, 'Call by <tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>.', None),
        (OTHER_CALLS, "Answer the question.", "neither it nor the prompt ever says <tool_call>"),
        (CHAT_TEMPLATE, "Answer the question.", None),
    ],
)
def test_f36_a_chat_template_that_shows_no_tools(template, prompt, says, healthy):
    file = healthy.questions("shown", instructed(prompt))
    found = look(healthy, f"{DATA}{file}", healthy.with_template("shown", template), checks=SEES)
    warned = [one for one in found if one.status != "ok"]
    assert [one.status for one in warned] == (["warn"] if says else [])
    assert not says or (says in warned[0].message and warned[0].fix)


@pytest.mark.skipif(not QWEN3.is_dir(), reason=f"{QWEN3} is not there")
@pytest.mark.parametrize(("shows", "says"), [(True, None), (False, "prompts are the same with and without them")])
def test_f36_with_the_real_qwen3_template(shows, says, healthy, tmp_path):
    """Qwen3's template explains tools as <tool_call>; without that part it ignores them."""
    folder = shutil.copytree(QWEN3, tmp_path / "qwen3")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if not shows:
        settings["chat_template"] = "{%- set tools = none %}" + settings["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = look(healthy, f"actor_rollout_ref.model.path={folder}", checks=SEES)
    warned = [one for one in found if one.status != "ok"]
    assert [one.status for one in warned] == (["warn"] if says else [])
    assert not says or says in warned[0].message


@pytest.mark.parametrize(("rows", "expected"), [(8, "fail"), (3, "warn")])
def test_d21_rows_that_choose_tools_that_are_not_there(rows, expected, healthy):
    """verl 0.9.1, tool_agent_loop.py:156-167: unknown names are left out; only rows that choose are affected."""

    def choose(row: dict[str, Any]) -> None:
        row["extra_info"]["tool_selection"] = ["calculator"] if row["extra_info"]["index"] < rows else ["search"]

    found = look(healthy, f"{DATA}{healthy.questions('choose', choose)}", checks=("data", "tools"))
    assert status(found, "tools") == expected
    assert f"{rows} of the first 8 questions would have no tool" in found[-1].message


def test_d21_prompts_that_are_left_out_refuse_nothing(healthy):
    short = ("data.max_prompt_length=8", "data.filter_overlong_prompts=True")
    found = look(healthy, *short, checks=(*SEES, "lengths"))
    assert status(found, "lengths") == "warn", "rows that were not looked at may be shorter"


@pytest.mark.parametrize("cluster", [False, True])
def test_d21_what_only_this_machine_does_not_reach_refuses_nothing(cluster, healthy, monkeypatch):
    """On a cluster the judge and the search may be where only workers are."""
    if cluster:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    dead = healthy.tool("dead", index=dead_url(), patience_s=0.5)
    judge = (*JUDGE, f"+reward.turn.judge.base_url={dead_url()}")
    found = look(healthy, dead, *judge, checks=("data", "tools", "index", "judge"))
    expected = "warn" if cluster else "fail"
    assert (status(found, "index"), status(found, "judge")) == (expected, expected)


def test_d21_a_judge_at_a_public_address_may_need_no_key(healthy, monkeypatch):
    """The judge is asked, and the error names it; a name under .invalid has no address (RFC 6761)."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    judge = (*JUDGE, "+reward.turn.judge.base_url=https://judge.example.invalid/v1")
    (found,) = look(healthy, *judge, checks=["judge"])
    assert (found.status, "cannot be asked: APIConnectionError" in found.message) == ("warn", True)


@pytest.mark.parametrize(
    ("plain", "expected"),
    [("+mtgrpo_run=tonight", True), ("+mtgrp=mine", True), ("+mt_grpo=gtpo", False), ("+mtgrpo_cpus=default", False)],
)
def test_d21_a_key_that_only_looks_like_a_group_is_the_users_own(plain, expected, healthy):
    """A lost or misspelt group has one of its configs as value (config/mtgrpo, config/mtgrpo_cpu)."""
    assert (status(look(healthy, plain, checks=["parts"]), "parts") == "ok") is expected


# ---- review 9: a reward model that shares the policy's GPUs

SERVED = (
    "reward.turn.preset=judge",
    "reward.reward_model.enable=True",
    "reward.custom_reward_function.path=pkg://verl_mtgrpo.rewards.judge",
    "reward.custom_reward_function.name=scored_by_judge",
)


@pytest.mark.parametrize(("pool", "expected"), [("False", "fail"), ("True", "ok")])
def test_review_9_a_colocated_reward_model(pool, expected, healthy):
    """verl 0.9.1, trainer_base.py:1560: it is asked after sampling, with prompts and responses alone."""
    found = look(healthy, *SERVED, f"reward.reward_model.enable_resource_pool={pool}", checks=["rewards"])
    assert status(found, "rewards") == expected
    said = str(found[0])
    assert expected == "ok" or ("enable_resource_pool=True" in said and "reward.turn.judge.base_url" in said)


# ---- D23: CPUs that are held before the first rollout (verl #7656)

UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
CPUS = "ray_kwargs.ray_init.num_cpus"


@pytest.mark.parametrize(
    ("overrides", "env", "expected", "says"),
    [
        # 1 controller + 8 units (verl's default) + 3 of one slot = 12; field.md, R5
        ((f"{CPUS}=4", f"{UNITS}=8"), {}, "fail", r"Ray has 4 CPUs .* but 12 are held .*num_cpus=12"),
        ((f"{CPUS}=11", f"{UNITS}=8"), {}, "fail", rf"11 CPUs .* 12 are held .*set {UNITS}=2, or set"),
        ((f"{CPUS}=12", f"{UNITS}=8"), {}, "ok", "12 of them held"),
        ((f"{CPUS}=5", f"{UNITS}=1"), {}, "ok", "5 of them held"),
        ((f"{CPUS}=4", f"{UNITS}=1"), {}, "fail", r"5 are held .*; set ray_kwargs.ray_init.num_cpus=5"),
        # 8 GPUs: 1 + 8 + 24
        ((f"{CPUS}=32", f"{UNITS}=8", "trainer.n_gpus_per_node=8"), {}, "fail", "33 are held"),
        # a judge with 2 separate GPUs: 1 + 1 + 3 + 6
        (
            (
                *SERVED, "reward.reward_model.enable_resource_pool=True", "reward.reward_model.n_gpus_per_node=2",
                "reward.reward_model.nnodes=1", f"{CPUS}=10", f"{UNITS}=1",
            ),
            {}, "fail", "11 are held",
        ),
        # standalone servers: 1 + 1 + 3 + 2
        (
            ("trainer.v1.trainer_mode=mtgrpo_separate_async", f"{ROLLOUT}.nnodes=1", f"{ROLLOUT}.n_gpus_per_node=1",
             f"{CPUS}=6", f"{UNITS}=1"),
            {}, "fail", "7 are held",
        ),
        # another backend has no units: 1 + 3
        (("transfer_queue.backend.storage_backend=MooncakeStore", f"{CPUS}=4"), {}, "ok", "4 of them held"),
        # other machines take part, so nothing is certain
        ((f"{CPUS}=4", f"{UNITS}=8"), {"RAY_ADDRESS": "10.0.0.1:6379"}, "warn", "in this process; workers"),
        # not given: Ray counts this machine
        ((f"{CPUS}=null", f"{UNITS}=100000"), {}, "fail", "num_cpus is not set, so those of this machine"),
    ],
)  # fmt: skip
def test_d23_too_few_cpus_are_said_before_anything_waits(
    overrides, env, expected, says, healthy, monkeypatch, tmp_path
):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no cluster was started here
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = look(healthy, *overrides, checks=["cpus"])
    assert [one.status for one in found] == [expected]
    assert re.search(says, str(found[0])), str(found[0])


@pytest.mark.parametrize(
    ("overrides", "gpu", "starts", "expected"),
    [
        ((), False, False, "warn"),
        ((), False, True, "fail"),  # the start, wherever it is: it would hang
        ((), True, False, "fail"),  # the machine that the run is meant for
        (("trainer.device=cpu",), False, False, "fail"),  # a run for this machine
        ((f"{CPUS}=4",), False, False, "fail"),  # Ray has what the command says on any machine
    ],
)
def test_a_machine_without_gpus_is_not_the_one_whose_cpus_count(
    overrides, gpu, starts, expected, healthy, monkeypatch, tmp_path
):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("VERL_PLATFORM")
    monkeypatch.setattr(setup, "has_accelerator", lambda: gpu)
    for_gpus = ("trainer.device=cuda", f"{ROLLOUT}.name=sglang", f"{CPUS}=null", "trainer.n_gpus_per_node=1000")
    config = compose_config(CommandLine((*GROUPS, *healthy.overrides, *for_gpus, *overrides)))
    found = examine(Setup(config, starts=starts), named("cpus", "engine"))
    assert status(found, "cpus") == expected
    assert status(found, "engine") == ("warn" if expected == "warn" or CPUS in str(overrides) else "fail")
    if expected == "warn":
        assert all("(this machine has no GPU, so the run will start on another one)" in one.message for one in found)


@pytest.mark.verl
@pytest.mark.slow
@pytest.mark.parametrize(("cpus", "starts"), [(6, False), (7, True)])
def test_d23_the_count_is_rays_and_transfer_queues_own(cpus, starts, healthy, monkeypatch):
    """1 + 3 units + 3 of a slot = 7: with 6 the real start hangs, with 7 it does not."""
    import ray
    from ray.exceptions import GetTimeoutError

    config = compose_config(CommandLine((*GROUPS, *healthy.overrides, f"{CPUS}={cpus}", f"{UNITS}=3")))
    assert status(examine(Setup(config), named("cpus")), "cpus") == ("ok" if starts else "fail")
    monkeypatch.delenv("VERL_PLATFORM")

    @ray.remote
    class Runner:
        """Do what verl's task runner does first."""

        def start(self, queue: Any) -> str:
            import transfer_queue as tq
            from verl.single_controller.ray.base import RayResourcePool

            tq.init(queue)
            RayResourcePool([1], max_colocate_count=3).get_placement_groups()
            return "started"

    with tempfile.TemporaryDirectory(prefix="mtg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=cpus, num_gpus=1, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            begun = Runner.remote().start.remote(config.transfer_queue)  # type: ignore[attr-defined]
            if starts:
                assert ray.get(begun, timeout=120) == "started"
            else:
                with pytest.raises(GetTimeoutError):
                    ray.get(begun, timeout=45)
        finally:
            ray.shutdown()
