"""Test how shell scripts are read: against bash itself where everything can be read, and that the rest is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.init.scripts import ARRAYS, GSM8K, as_bash_reads_it, write
from tests.recipes import RECIPES
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.init.recipe import read_command, read_script
from verl_mtgrpo.init.shell import PASSED_ON

MAIN = "python3 -m verl.trainer.main_ppo"
HABITS = {
    "continued": f"{MAIN} a=1 \\\n  b=2 \\\n\tc=3\n",
    "comments": f"# {MAIN} x=1\n{MAIN} a=1 b=2#3 # c=4\n",
    "quotes": f"""{MAIN} a='x y' "b=['u', 'v']" c=["p","q"] d="it's" e=\\$x 'f="g"'\n""",
    "variables": f'A=1\nB="x $A"\nC=$A$A\n{MAIN} a=$A b="$B" c=${{C}} d="${{B}}/z"\n',
    "defaults": f'{MAIN} a=${{NOT_SET:-5}} b=${{NOT_SET-6}} c="${{NOT_SET:-$HOME/x}}" d=${{HOME:-7}}\n',
    "empty defaults": f"E=\n{MAIN} a=${{E:-8}} b=${{E-9}}\n",
    "arrays": f'A=(\n  a=1  # one\n  "b=x y"\n)\nA+=(c=3)\n{MAIN} "${{A[@]}}" d=${{A[0]}}\n',
    "split": f'EXTRA="a=1 b=2"\n{MAIN} $EXTRA\n',
    "own folder": f'HERE=$(cd "$(dirname "$0")" && pwd)\n{MAIN} a="$HERE/t.py" b=$(pwd) c="$(dirname "$0")"\n',
    "one line": f"set -x; export A=1 B=2; {MAIN} a=$A b=$B | cat\n",
    "here-document": f"cat <<EOF >/dev/null\n{MAIN} z=9\nEOF\n{MAIN} a=1\n",
    "environment of the program": f"A=1 B=2 exec {MAIN} a=1\n",
    "a condition that fails": f'A=1\nif [ -n "${{N:-}}" ]; then\n  A=2\nfi\n[ -n "${{N:-}}" ] && A=3\n{MAIN} a=$A\n',
    "appended": f"A=x\nA+=y\n{MAIN} a=$A\n",
    "functions": f"f() {{\n  A=2\n}}\nA=1\n{MAIN} a=$A\n",
}


def words(script: Path) -> list[str]:
    recipe = read_script(script)
    return [word.text for word in recipe.words if word.text not in ("exec", "python3", PASSED_ON) and "=" in word.text]


@pytest.mark.process
@pytest.mark.parametrize("habit", HABITS)
def test_it_is_read_as_bash_reads_it(habit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = write(tmp_path, HABITS[habit])
    expected = [word for word in as_bash_reads_it(script, tmp_path) if "=" in word]
    read = words(script)
    assert [word for word in read if word not in ("A=1", "B=2")] == expected
    assert not read_script(script).unread


@pytest.mark.process
@pytest.mark.parametrize("name", ["paper_v1_triviaqa/run", "small_single_gpu/run", "migrate/before"])
def test_recipes_without_conditions_are_read_as_bash_reads_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = RECIPES / f"{name}.sh"
    assert words(script) == as_bash_reads_it(script, tmp_path)[2:]


@pytest.mark.process
def test_only_what_depends_on_a_condition_or_a_program_is_left_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = write(tmp_path, ARRAYS)
    recipe, real = read_script(script), as_bash_reads_it(script, tmp_path)
    certain = [word.text for word in recipe.arguments if not word.unknown and not word.maybe]
    assert set(certain) <= set(real), "what is read is what bash passes"
    assert len(certain) >= 14
    unread = {part for word in recipe.unread for part in word.unknown}
    assert unread == {"$rollout_tp", "$NGPUS_PER_NODE", "$(date +%Y%m%d)"}
    assert [word.text for word in recipe.arguments if word.maybe and not word.unknown] == [
        "data.max_response_length=2048",
        "actor_rollout_ref.actor.use_torch_compile=False",
    ], "a value that a condition may change is said, and so is what an array gets under one"
    assert recipe.positional == ("$1",)


def test_an_array_that_is_empty_but_under_conditions_is_the_union_of_them(tmp_path):
    script = write(
        tmp_path, "M=()\ncase $1 in\n  a) M=(x=1) ;;\n  b | c) M=(y=2) ;;\nesac\n" + f'{MAIN} "${{M[@]}}" z=3\n'
    )
    assert [(word.text, word.maybe) for word in read_script(script).arguments] == [
        ("x=1", True),
        ("y=2", True),
        ("z=3", False),
    ]


def test_nothing_is_run_to_read_a_script(tmp_path):
    script = write(tmp_path, f"touch ran\nX=$(touch ran)\nY=`touch ran`\n{MAIN} a=$X b=$Y c=$((1 + 1))\n")
    recipe = read_script(script)
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()
    unknown = [word.unknown for word in recipe.arguments]
    assert unknown == [("$(touch ran)",), ("`touch ran`",), ("$((1 + 1))",)]
    assert [word.line for word in recipe.arguments] == [4, 4, 4]


def test_what_is_passed_on_and_what_stands_behind_it(tmp_path):
    recipe = read_script(write(tmp_path, GSM8K))
    assert recipe.behind_arguments() == []
    assert recipe.plain_python and recipe.program == "python3"
    assert recipe.settings["trainer.logger"].value == "[console,wandb]", "bash takes these quotes away"
    late = read_script(write(tmp_path, f'{MAIN} "$@" a=1\n'))
    assert [word.text for word in late.behind_arguments() or ()] == ["a=1"]
    assert read_script(write(tmp_path, f"{MAIN} a=1\n")).behind_arguments() is None
    chosen = read_script(write(tmp_path, "L=(uv run python3)\n" + '"${L[@]}" -m verl.trainer.main_ppo a=1\n'))
    assert not chosen.plain_python, "uv looks for a Python of its own"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo no\n", "does not call verl.trainer.main_ppo"),
        ("exec bash other.sh a=1\n", r"runs other.sh \(line 1\)"),
        ("python3 -m recipe.dapo.main_dapo a=1\n", r"recipe.dapo.main_dapo \(line 1\), which is another trainer"),
        (f"{MAIN} a=1\n{MAIN} a=2\n", r"2 times \(lines 1, 2\)"),
    ],
)
def test_scripts_that_are_no_recipe(text, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        read_script(write(tmp_path, text))


def test_a_typed_command():
    recipe = read_command(["X=1", "python3", "-m", "verl.trainer.main_ppo", "\\", "a=1", "+b.c=[x]"])
    assert {key: one.value for key, one in recipe.settings.items()} == {"a": "1", "b.c": "[x]"}
    with pytest.raises(ConfigError, match=r"'a=1' does not call verl\.trainer\.main_ppo"):
        read_command(["a=1"])
