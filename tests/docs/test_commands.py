"""Check every command of the documentation: run it, parse it with the real parser, or compose it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess

import pytest

from tests.docs.pages import (
    ALL_PAGES,
    COMMANDS,
    OTHERS_PAGE,
    PAGES,
    ROOT,
    code_spans,
    commands,
    is_overrides,
    name_of,
    of,
)
from verl_mtgrpo.cli.main import build_parser

OF_MTGRPO = [command for page in ALL_PAGES for command in commands(page) if command.words[:1] == ("mtgrpo",)]
SHOWN_ONLY = ("curl", "docker", "export", "git", "pip")
"""Programs whose commands are only parsed, never run."""


def test_no_command_goes_unlooked_at():
    known = {"mtgrpo", "make", "python", "bash", *SHOWN_ONLY}
    assert not [str(one) for one in COMMANDS if one.words[0] not in known and not is_overrides(one)]
    assert len(COMMANDS) >= 50


@pytest.mark.parametrize("command", OF_MTGRPO, ids=str)
def test_mtgrpo_parses(command):
    words = command.words[1 : command.words.index(">")] if ">" in command.words else command.words[1:]
    assert "run" in build_parser().parse_args(words)


def test_a_wrong_command_does_not_parse():
    with pytest.raises(SystemExit):
        build_parser().parse_args(["report", "runs/mine", "--no-such-option"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_mtgrpo_in_the_text_is_a_subcommand_with_these_options(page):
    (subcommands,) = (action for action in build_parser()._actions if action.choices)
    for span in code_spans(page):
        program, _, rest = span.partition(" ")
        if program == "mtgrpo" and rest:
            name, *words = rest.split()
            assert name in subcommands.choices, span
            parser = subcommands.choices[name]
            for nested in (action for action in parser._actions if isinstance(action.choices, dict)):
                parser = nested.choices.get(words[0] if words else "", parser)
            options = parser._option_string_actions
            assert set(re.findall(r"(?<= )--[a-z-]+", rest)) <= set(options), f"{span} in {name_of(page)}"


@pytest.mark.process
@pytest.mark.parametrize("command", of("make"), ids=str)
def test_make_has_this_target(command):
    found = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert found.returncode == 0, found.stderr


@pytest.mark.process
@pytest.mark.parametrize("command", of("bash"), ids=str)
def test_a_script_takes_these_arguments(command):
    script, *arguments = command.words[1:]
    given = dict(variable.split("=", 1) for variable in command.variables)
    env = {**os.environ, **given, "DRY_RUN": "print"}
    found = subprocess.run(["bash", script, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    assert found.returncode == 0, found.stderr
    assert set(arguments[1:]) <= set(found.stdout.splitlines())


@pytest.mark.imports_verl
@pytest.mark.parametrize("command", of("python"), ids=str)
def test_python_finds_the_module_or_the_script(command):
    if command.words[1].endswith(".py"):
        assert (ROOT / command.words[1]).is_file()
    else:
        assert command.words[1] == "-m"
        assert importlib.util.find_spec(command.words[2])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_in_the_text_are_there(page):
    for span in code_spans(page):
        if found := re.match(r"(?:python|bash|pytest -s) ([\w./-]+\.(?:py|sh))", span):
            there = [(ROOT / found[1]).is_file(), page == OTHERS_PAGE, "NAME" in span]
            assert any(there), f"{span} in {name_of(page)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_pip_is_asked_for_is_this_package_with_extras_that_it_has(page):
    optional = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", optional.partition("\n[")[0], re.MULTILINE))
    for line in page.read_text(encoding="utf-8").splitlines():
        for target in re.findall(r"pip install (?:--no-deps )?\"?([^\s\"`]+)", line):
            name, _, named = target.rstrip("]").partition("[")
            if name == "./verl-mtgrpo":
                assert not named or set(named.split(",")) <= extras, line
            else:
                # What `make dist` builds is not in the repository; tests/test_wheel.py compares its name.
                assert name == "verl" or name.startswith("dist/") or (ROOT / name).is_dir(), line
