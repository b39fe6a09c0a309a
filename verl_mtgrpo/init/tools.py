"""Find the names of an agent's tools in their file, without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.plain_yaml import read_yaml

_YAML = (".yaml", ".yml")


def tool_names(path: Path) -> list[str]:
    """Return the names by which the model calls the tools of a Python file or a tool YAML.

    Raises:
        ConfigError: The file cannot be read as either.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in _YAML:
            return [_name(entry) for entry in _entries(text)]
        return [name for name, _ in tool_functions(ast.parse(text))]
    except (OSError, UnicodeDecodeError, SyntaxError, yaml.YAMLError) as error:
        fix = "name a Python file with verl's function tools or verl's YAML of tools"
        raise ConfigError(f"the tools in {path} cannot be read: {type(error).__name__}: {error}", fix=fix) from error


def key_of(path: Path) -> str:
    """Return verl's setting for a file of tools: one for Python files, another one for YAML."""
    kind = "tool_config_path" if path.suffix in _YAML else "function_tool_path"
    return f"actor_rollout_ref.rollout.multi_turn.{kind}"


def tool_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the functions below ``@function_tool``, with the names that it gives them."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for one in node.decorator_list:
            called = one.func if isinstance(one, ast.Call) else one
            if ast.unparse(called).rpartition(".")[2] == "function_tool":
                yield _given_name(one) or node.name, node


def tool_classes(path: Path) -> list[tuple[str, str]]:
    """Return the tools of a tool YAML: the name of each, and the class that ``class_name`` names."""
    return [(_name(entry), str(entry.get("class_name"))) for entry in _entries(path.read_text(encoding="utf-8"))]


def _given_name(decorator: ast.expr) -> str:
    if not isinstance(decorator, ast.Call):
        return ""
    given = [*decorator.args[:1], *(one.value for one in decorator.keywords if one.arg == "name")]
    return next((one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)), "")


def _entries(text: str) -> list[dict[str, Any]]:
    whole: Any = read_yaml(text)
    listed: Any = whole.get("tools") if isinstance(whole, dict) else None
    return [entry for entry in listed or [] if isinstance(entry, dict)]


def _name(entry: dict[str, Any]) -> str:
    function = (entry.get("tool_schema") or {}).get("function") or {}
    return str(function.get("name") or str(entry.get("class_name")).rpartition(".")[2])
