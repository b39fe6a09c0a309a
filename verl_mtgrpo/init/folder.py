"""Write the folder of a switched recipe: ``run.sh``, ``turn_rewards.py`` and, if needed, a wrapper of its Python."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from verl_mtgrpo.atomic import atomic_folder, lock_beside
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.init.recipe import Recipe
from verl_mtgrpo.init.switch import FUNCTION, Override, Switch, Tools
from verl_mtgrpo.init.templates import REWARDS, RUN, WRAPPER, WRAPS

_ASSIGNMENT = re.compile(r"\w+=.*", re.DOTALL)
_WRAPPED = ("python", "python3")


def write_folder(folder: Path, recipe: Recipe, switch: Switch, tools: Tools) -> list[Path]:
    """Write the files and return them.

    Raises:
        ConfigError: The folder exists, or nothing can be added to the recipe's command from outside.
    """
    folder = folder.resolve()
    if folder.exists():
        raise ConfigError(f"{folder} exists already", fix="name another folder by --out, or move this one away")
    run = run_script(folder, recipe, switch)
    files = {"run.sh": run, f"{FUNCTION}.py": rewards_file(folder, recipe, switch, tools)}
    if _way(recipe, switch) == "wrap":
        files |= {f"bin/{name}": WRAPPER for name in _WRAPPED}
    with lock_beside(folder), atomic_folder(folder) as draft:
        for name, text in files.items():
            path = draft / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if not name.endswith(".py"):
                path.chmod(0o755)
    return [folder / name for name in files]


def run_script(folder: Path, recipe: Recipe, switch: Switch) -> str:
    """Return the text of ``run.sh``."""
    way = _way(recipe, switch)
    lines = [f"    # {one.why}\n    {_quoted(one.text, folder)}" for one in switch.overrides]
    script = _place(recipe.script, folder) if recipe.script else ""
    if way == "typed":
        words = [shlex.quote(word.text) for word in recipe.words]
        env = ["env"] if _ASSIGNMENT.fullmatch(recipe.words[0].text) else []
        command = f"exec {' '.join([*env, *words])} \\\n    " + '"${overrides[@]}" "$@"'
    elif way == "arguments":
        command = f'exec bash {script} "${{overrides[@]}}" "$@"'
    else:
        command = WRAPS.format(script=script)
    return RUN.format(
        what=os.path.relpath(recipe.script) if recipe.script else "your command",
        run=os.path.relpath(folder / "run.sh"),
        arguments="ARGUMENTS OF YOUR SCRIPT..." if way == "wrap" else "HYDRA OVERRIDES...",
        overrides="\n".join(lines),
        command=command,
    )


def rewards_file(folder: Path, recipe: Recipe, switch: Switch, tools: Tools) -> str:
    """Return the text of ``turn_rewards.py``."""
    names = tools.names or ("search",)
    worth = ", ".join(f'"{name}": 0.2' for name in names)
    if len(worth) > 100:
        worth = "\n    " + ",\n    ".join(f'"{name}": 0.2' for name in names) + ",\n"
    where = tools.file.name if tools.file else "the group's search tool" if not tools.names else "your tools"
    return REWARDS[switch.keeps_score].format(
        what=os.path.relpath(recipe.script) if recipe.script else "your command",
        doctor=doctor_line(folder),
        worth=worth,
        where=where,
    )


def doctor_line(folder: Path) -> str:
    """Return the command that checks the switched recipe."""
    return f"mtgrpo doctor -- bash {os.path.relpath(folder / 'run.sh')}"


def _way(recipe: Recipe, switch: Switch) -> str:
    """Return how the overrides reach the command: ``typed``, as ``arguments`` of the script, or by a ``wrap``.

    Raises:
        ConfigError: There is no such way without editing the script.
    """
    if recipe.script is None:
        return "typed"
    behind = recipe.behind_arguments()
    ours = {one.text.partition("=")[0].lstrip("+") for one in switch.overrides}
    wins = [word for word in behind or () if word.text.partition("=")[0].lstrip("+") in ours]
    if behind is not None and not wins and not recipe.positional:
        return "arguments"
    if recipe.plain_python:
        return "wrap"
    if behind is None:
        reason = 'passes no arguments on to verl ("$@")'
    elif wins:
        reason = f'sets {wins[0].text} (line {wins[0].line}) behind "$@", where it wins over what is added'
    else:
        reason = f'reads {", ".join(recipe.positional)} itself, so overrides cannot be passed as "$@"'
    raise ConfigError(
        f"{recipe.script} {reason}, and its program {recipe.program!r} is not looked up by name",
        fix='put "$@" at the end of its command of verl, or give that command itself: mtgrpo init -- python3 -m ...',
    )


def _place(path: Path, folder: Path) -> str:
    """Return a path for a shell: from the folder of run.sh if both are below the working directory, else absolute."""
    here = Path.cwd()
    if path.is_relative_to(here) and folder.is_relative_to(here):
        return f'"$HERE/{os.path.relpath(path, folder)}"'
    return shlex.quote(str(path))


def _quoted(text: str, folder: Path) -> str:
    """Return an override as a word of the shell; a file near the folder is named from there."""
    key, _, value = text.partition("=")
    if value.startswith("$HERE/"):
        return f"{key}={value.join(chr(34) * 2)}"
    if os.path.isabs(value) and Path(value).exists():
        return f"{key}={_place(Path(value), folder)}"
    return shlex.quote(text) if re.search(r"[^\w./:+=-]", text) else text


def added(overrides: Sequence[Override]) -> str:
    """Return the overrides for people, one per line with its reason."""
    width = max(len(one.text) for one in overrides)
    return "\n".join(f"  + {one.text:<{width}}  {one.why}" for one in overrides)
