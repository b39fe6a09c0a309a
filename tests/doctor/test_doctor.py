"""Test the command line and the output of `mtgrpo doctor`; other modules test its checks."""

from __future__ import annotations

import json

import pytest

from tests.training import processes_that_mention
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.doctor import processes as doctor_processes
from verl_mtgrpo.doctor.compose import parse
from verl_mtgrpo.doctor.findings import Finding, as_text, from_error
from verl_mtgrpo.errors import ConfigError

GROUP = "hydra.searchpath=[pkg://verl_mtgrpo.config]"


@pytest.mark.parametrize(
    ("words", "overrides", "path", "name", "env"),
    [
        (["a=1", "+b=[x,y]"], ("a=1", "+b=[x,y]"), None, None, {}),
        (["python", "-m", "verl.trainer.main_ppo", GROUP, "+mtgrpo=gtpo"], (GROUP, "+mtgrpo=gtpo"), None, None, {}),
        (["python3", "verl/trainer/main_ppo.py", "a=1"], ("a=1",), None, None, {}),
        (
            ["X_Y=1", "MTGRPO_INDEX=/i", "/v/bin/python", "-u", "-m", "verl.trainer.main_ppo", "\\", "a=b=c"],
            ("a=b=c",), None, None, {"X_Y": "1", "MTGRPO_INDEX": "/i"},
        ),
        (
            ["--config-path=pkg://verl_mtgrpo.config", "--config-name", "mtgrpo_trainer", "mtgrpo=mt_ppo"],
            ("mtgrpo=mt_ppo",), "pkg://verl_mtgrpo.config", "mtgrpo_trainer", {},
        ),
    ],
)  # fmt: skip
def test_overrides_or_a_whole_command(words, overrides, path, name, env):
    line = parse(words)
    assert (line.overrides, line.path, line.name, dict(line.env)) == (overrides, path, name, env)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["a=1"], False), (["+mtgrpo=x"], True), (["mtgrpo=x"], True), (["+mtgrpo_cpu=default"], False)],
)
def test_a_preset_is_added_only_where_none_is(words, named):
    assert parse(words).names_group is named


@pytest.mark.parametrize(
    ("words", "says"), [(["--multirun", "a=1,2"], "--multirun is no"), (["-cn"], "-cn has no value")]
)
def test_other_options_are_refused(words, says, capsys):
    with pytest.raises(ConfigError, match=says):
        parse(words)
    assert main(["doctor", "--quick", "--json", "--", *words]) == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["check"], found["status"]) == ("command", "fail")
    assert says in found["message"] and found["fix"]


@pytest.mark.imports_verl
def test_alone_it_looks_at_the_environment(capsys, monkeypatch):
    pytest.importorskip("verl")
    monkeypatch.delenv("MTGRPO_INDEX", raising=False)
    assert main(["doctor", "--quick"]) == 0
    versions, plugin, index, config, fix, _, last = capsys.readouterr().out.splitlines()
    assert versions.startswith("ok    versions  Python ") and plugin.startswith("ok    plugin")
    assert index == "skip  index     neither --index nor MTGRPO_INDEX names an index"
    assert config == "skip  config    no command line was given" and fix.strip().startswith("fix: to check one")
    assert last == "nothing failed; 2 skipped"


@pytest.mark.imports_verl
def test_an_index_alone_is_opened(capsys, tmp_path):
    pytest.importorskip("verl")
    assert main(["doctor", "--quick", "--index", str(tmp_path)]) == 1
    assert "not an index of verl-mtgrpo: it has no manifest.json" in capsys.readouterr().out


def test_an_error_says_what_was_found_and_what_to_do():
    assert from_error("a", ConfigError("n; is 1", fix="set it to 2; or 3")) == Finding(
        "a", "fail", "n; is 1", "set it to 2; or 3"
    )
    expected = Finding("a", "fail", "n is 'x', expected one of 1, 2", "set it to one of 1, 2")
    assert from_error("a", ConfigError("n is 'x'", expected="one of 1, 2")) == expected
    assert from_error("a", ConfigError("two\nlines"), "do it") == Finding("a", "fail", "two lines", "do it")


def test_text_has_a_line_each_and_a_summary():
    found = [Finding("a", "ok", "well"), Finding("longer", "fail", "bad", "mend it"), Finding("b", "warn", "odd")]
    assert as_text(found).splitlines() == [
        "ok    a       well",
        "fail  longer  bad",
        "              fix: mend it",
        "warn  b       odd",
        "",
        "1 failed: this run would stop, or not do what its config says; 1 to look at",
    ]


@pytest.mark.process
@pytest.mark.timeout(30)
def test_a_fresh_process_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(doctor_processes, "LIMIT_S", 0.1)
    monkeypatch.setenv("MTGRPO_TEST_MARK", "doctor-too-late")
    (found,) = doctor_processes.registered(with_ray=False)
    assert (found.status, found.message) == ("fail", "a fresh Python did not finish within 0.1 s")
    assert processes_that_mention("doctor-too-late") == []
