"""Break set-ups in one place: `mtgrpo doctor` and the start of a run report it, and nothing is trained.

``pytest tests/doctor/test_broken_setups.py -s`` prints the table.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("verl")

from tests.doctor.broken_setups import SETUPS
from tests.doctor.setups import DATA, JUDGE, ROLLOUT, TURNS, Broken, Healthy, dead_url, doctor, fake_package, main_ppo
from tests.judge_server import JudgeServer
from tests.training import REPOSITORY
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.demo.policy import CHAT_TEMPLATE
from verl_mtgrpo.doctor.checks import CHECKS
from verl_mtgrpo.doctor.start_check import StartCheck

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.process, pytest.mark.network, pytest.mark.compose]


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, int, str]]]:
    rows: list[tuple[str, int, str]] = []
    yield rows
    print(f"\n\n{'set-up':<45} exit  message")
    for name, code, message in rows:
        print(f"{name:<45} {code:>4}  {message}")


def arrange(case: Broken, run: Healthy, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Break the set-up, and return the overrides of the broken run."""
    for name, value in case.env.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    if case.package:
        monkeypatch.syspath_prepend(str(fake_package(run.folder, *case.package)))
    made = case.make(run) if case.make else ()
    return (*case.change, *([made] if isinstance(made, str) else made))


@pytest.mark.parametrize("case", SETUPS, ids=lambda case: case.name)
def test_it_is_said_and_nothing_starts(case, healthy, configs, table, monkeypatch, capsys):
    overrides = arrange(case, healthy, monkeypatch)
    code, findings = doctor(capsys, healthy, *overrides, preset=case.preset)
    failed = [one for one in findings if one["status"] == "fail"]
    assert code == 1
    said = [f"{one['message']}; {one['fix']}" for one in failed if one["check"] == case.check]
    assert [text for text in said if re.search(case.says, text)], (failed, case.says)
    assert all(one["fix"] for one in failed), "each failure says what to do"
    table.append((case.name, code, failed[0]["message"]))
    if case.starts:
        with pytest.raises(SystemExit, match=case.says) as ended:
            StartCheck().on_job_start(config=configs[-1])
        assert str(ended.value.code).startswith("verl_mtgrpo.errors.ConfigError: ")


def test_there_are_enough_of_them():
    names = [case.name for case in SETUPS]
    assert len(names) == len(set(names)) >= 25
    assert {case.check for case in SETUPS} >= {"versions", "plugin", "config", "chat", "index", "lengths", "judge"}


def test_a_judge_that_wants_a_key(healthy, configs, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = JudgeServer()
    server.answer = lambda body, n: 401
    try:
        code, findings = doctor(capsys, healthy, *JUDGE, f"+reward.turn.judge.base_url={server.url}")
    finally:
        server.stop()
    assert (code, findings[-1]["check"], findings[-1]["status"]) == (1, "judge", "fail")
    assert "refuses (HTTP 401), the environment variable OPENAI_API_KEY is not set" in findings[-1]["message"]


def test_a_judge_that_refuses_the_key(healthy, configs, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    server = JudgeServer()
    server.answer = lambda body, n: 401
    try:
        address = server.url.replace("//", "//me:pass-very-secret@")
        asked = (*JUDGE, f"+reward.turn.judge.base_url='{address}'")
        code, findings = doctor(capsys, healthy, *asked)
        assert (code, findings[-1]["check"], findings[-1]["status"]) == (1, "judge", "fail")
        assert "refuses (HTTP 401), the environment variable OPENAI_API_KEY is set" in findings[-1]["message"]
        assert "very-secret" not in json.dumps(findings)
        server.answer = lambda body, n: "1"
        code, findings = doctor(capsys, healthy, *asked)
        assert (code, findings[-1]["check"], findings[-1]["status"]) == (0, "judge", "ok")
        assert server.bodies[-1]["messages"][0]["content"] == "Answer with the digit 1."
    finally:
        server.stop()


@pytest.mark.parametrize("preset", ["mt_grpo", "mt_ppo", "turn_gae"])
def test_a_healthy_set_up_is_well(preset, healthy, configs, capsys):
    code, findings = doctor(capsys, healthy, preset=preset)
    assert ([one for one in findings if one["status"] != "ok"], code) == ([], 0)
    assert {one["check"] for one in findings} == {"versions", "plugin", "config"} | {
        check.name
        for check in CHECKS
        if check.name
        not in ("values", "reward", "models", "judge", "unused", "trees", "roles", "dense", "deciders", "environment")
    }
    StartCheck().on_job_start(config=configs[-1])


def test_the_same_as_text(healthy, capsys):
    argv = [
        "doctor",
        "--quick",
        "--cpu",
        "--preset",
        "mt_grpo",
        "--index",
        str(healthy.index),
        "--",
        *healthy.overrides,
    ]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["", "nothing failed"]
    assert all(line.startswith("ok    ") for line in lines[:-2])


@pytest.mark.parametrize(
    ("format", "loop"),
    [
        ("search_r1", "mtgrpo_raw_agent"),
        ("search_r1", "mtgrpo_tool_agent"),
        ("mtgrpo_xml", "mtgrpo_tool_agent"),
    ],
)
def test_every_format_is_well(format, loop, healthy, capsys):
    file = healthy.questions(f"in-{format}", format=format)
    spoken = (f"{TURNS}.format={format}", f"{ROLLOUT}.agent.default_agent_loop={loop}", f"{DATA}{file}")
    code, findings = doctor(capsys, healthy, *spoken)
    assert ([one for one in findings if one["status"] != "ok"], code) == ([], 0)


def test_what_cannot_be_seen_from_here_refuses_nothing(healthy, configs, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    on_the_hub = ("actor_rollout_ref.model.path=nobody/no-such-model",)
    code, findings = doctor(capsys, healthy, *on_the_hub)
    said = {one["check"]: one for one in findings}
    assert (code, said["tokenizer"]["status"], said["chat"]["status"]) == (0, "skip", "skip")
    assert "not in the Hugging Face cache" in said["tokenizer"]["message"]
    several = ("trainer.nnodes=2", f"{DATA}/far/train.parquet", "actor_rollout_ref.model.path=/far/model")
    code, findings = doctor(capsys, healthy, *several)
    warned = {one["check"] for one in findings if one["status"] == "warn"}
    assert (code, warned) == (0, {"data", "tokenizer", "lengths"})
    for config in configs:
        StartCheck().on_job_start(config=config)


def test_how_much_is_looked_at_is_the_users(healthy, configs, capsys):
    dead = (healthy.tool("dead", index=dead_url(), patience_s=0.5), "trainer.turn.preflight=config")
    doctor(capsys, healthy, *dead)
    StartCheck().on_job_start(config=configs[-1])
    doctor(capsys, healthy, *dead, f"{ROLLOUT}.n=1")
    with pytest.raises(SystemExit, match="compares the rollouts of a prompt"):
        StartCheck().on_job_start(config=configs[-1])
    doctor(capsys, healthy, f"{ROLLOUT}.n=1", "trainer.turn.preflight=off")
    StartCheck().on_job_start(config=configs[-1])


def test_all_failures_are_said_at_once(healthy, configs, capsys):
    doctor(capsys, healthy, f"{DATA}/no/train.parquet", f"{TURNS}.max_assistant_turns=1")
    with pytest.raises(SystemExit) as ended:
        StartCheck().on_job_start(config=configs[-1])
    turns, data = str(ended.value.code).splitlines()
    assert "max_assistant_turns=1" in turns and "preflight=config" not in turns
    assert "/no/train.parquet does not exist" in data and data.endswith("checks with trainer.turn.preflight=config)")


@pytest.mark.parametrize(
    ("overrides", "check", "says"),
    [
        (("data.train_batch_size=6",), "batch", "verl fills the last one with 16 copies that are not trained on"),
        (
            (f"{TURNS}.max_tool_response_length=256",),
            "tools",
            "returns up to 3000 characters .*, but verl cuts results",
        ),
        (
            (
                "algorithm.adv_estimator=rloo",
                "~algorithm.turn",
                "trainer.turn.on_purpose=[algorithm.adv_estimator]",
                f"{ROLLOUT}.n=1",
            ),
            "estimator",
            "rloo compares the rollouts",
        ),
        (
            (f"{ROLLOUT}.max_model_len=600",),
            "turns",
            "max_model_len=600 is less than a prompt of 512 and a response of",
        ),
    ],
)
def test_what_works_but_perhaps_not_as_meant(overrides, check, says, healthy, capsys):
    code, findings = doctor(capsys, healthy, *overrides)
    warned = [one for one in findings if one["status"] == "warn"]
    assert (code, [one["check"] for one in warned]) == (0, [check])
    assert re.search(says, warned[0]["message"])


def test_an_end_token_that_ends_no_turn(healthy, capsys):
    override = healthy.with_template("ends", CHAT_TEMPLATE.replace("<|im_end|>", "</turn>"))
    rows = f"{DATA}{healthy.questions('cut', format='search_r1')}"
    raw = f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_raw_agent"
    for spoken, more, expected in (("hermes", (), 0), ("search_r1", (rows,), 1), ("search_r1", (rows, raw), 0)):
        code, findings = doctor(capsys, healthy, override, f"{TURNS}.format={spoken}", *more)
        warned = [one for one in findings if one["check"] == "chat" and one["status"] != "ok"]
        assert (code, len(warned)) == (0, expected), findings
        if warned:
            assert re.search(r"the chat template writes '</turn>', which is \d tokens", warned[0]["message"])


@pytest.mark.verl
@pytest.mark.parametrize("name", ["chat template without tool role", "dead retriever"])
def test_verls_own_command_stops_before_ray(name, healthy, tmp_path, monkeypatch):
    case = next(case for case in SETUPS if case.name == name)
    overrides = arrange(case, healthy, monkeypatch)
    groups = ("hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo", "+mtgrpo_cpu=default")
    ended = main_ppo(tmp_path, *groups, *healthy.overrides, *overrides, VERL_PLATFORM="cpu")
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("verl_mtgrpo.errors.ConfigError: ")]
    assert re.search(case.says, said[0])
    assert "ray init" not in ended.stdout
    assert not list(tmp_path.rglob("*checkpoint*"))


@pytest.mark.verl
def test_the_whole_command_with_a_ray_worker(healthy):
    run = ["doctor", "--json", "--cpu", "--preset", "mt_grpo", "--index", str(healthy.index), "--", *healthy.overrides]
    ended = subprocess.run([sys.executable, "-m", "verl_mtgrpo.cli.main", *run], capture_output=True, text=True)
    answer = json.loads(ended.stdout)
    assert (ended.returncode, answer["ok"]) == (0, True), ended.stdout
    said = {one["check"]: one["message"] for one in answer["findings"]}
    assert re.fullmatch(r"a process that imports verl knows all \d\d names of this package", said["registered"])
    assert re.fullmatch(r"a Ray worker knows all \d\d names of this package", said["ray"])


@pytest.mark.verl
def test_a_plugin_that_cannot_be_loaded(tmp_path, monkeypatch):
    """verl swallows the error, but a fresh process shows which module is missing."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['wrapt'] = None\n")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    command = [sys.executable, "-m", "verl_mtgrpo.cli.main", "doctor", "--no-ray"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 1
    assert re.search(
        r"^fail  registered +a fresh Python that imports verl ends with .*wrapt", ended.stdout, re.MULTILINE
    )
