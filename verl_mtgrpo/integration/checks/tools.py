"""The tools that the agent may call: read from the tool YAML as verl does, without making them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.checks.findings import Finding, from_error, one_line
from verl_mtgrpo.integration.checks.setup import MULTI_TURN, ROLLOUT, Setup, Tool
from verl_mtgrpo.integration.parts import LOOPS, check_tool_file
from verl_mtgrpo.integration.search_settings import search_settings
from verl_mtgrpo.rewards.formats import CUT_FORMATS, FORMATS

CHECK = "tools"
_CALLED = re.compile(r'"name"\s*:\s*"([\w.-]+)"')


def tools(setup: Setup) -> Iterator[Finding]:
    """Can they be made, and are they called what prompts call them? Leaves them in ``setup.tools``."""
    if setup.get(f"{ROLLOUT}.agent.default_agent_loop") not in LOOPS:
        yield Finding(CHECK, "skip", "the agent loop is not one of this package")
        return
    try:
        check_tool_file(setup.config)
    except ConfigError as error:
        missing = from_error(CHECK, error)
        yield setup.absent(CHECK, missing.message, missing.fix)
        return
    setup.tools = [*_native(setup.get(f"{MULTI_TURN}.tool_config_path")), *_functions(setup)]
    names = [tool.name for tool in setup.tools]
    if not names:
        where = setup.get(f"{MULTI_TURN}.tool_config_path") or setup.get(f"{MULTI_TURN}.function_tool_path")
        raise ConfigError(f"{where} declares no tool; list at least one, as the packaged search_tool.yaml does")
    problems = [*_names(setup, names), *_lengths(setup)]
    yield from problems or [Finding(CHECK, "ok", ", ".join(_described(tool) for tool in setup.tools))]


def _described(tool: Tool) -> str:
    return f"{tool.name} (k={tool.config.get('k', 3)})" if tool.searches else tool.name


def _native(path: str | None) -> list[Tool]:
    from verl.utils.import_utils import resolve_config_path

    if not path:
        return []
    try:
        listed = OmegaConf.load(resolve_config_path(path)).get("tools") or []
        entries = [OmegaConf.to_container(one, resolve=True) for one in listed]
    except Exception as error:  # YAML's and OmegaConf's errors have no common root
        raise ConfigError(
            f"{path} is no tool YAML: {one_line(str(error))}; see the packaged search_tool.yaml"
        ) from error
    return [_native_tool(entry, path) for entry in entries]


def _native_tool(entry: Any, path: str) -> Tool:
    from verl_mtgrpo.integration.search_tool import SearchTool, default_schema

    name = str(entry.get("class_name"))
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's: importing it may raise anything
        raise ConfigError(
            f"the tool class {name} of {path} cannot be imported: {type(error).__name__}: {one_line(str(error))}; "
            "correct class_name, or install its package where training runs"
        ) from error
    config, schema = entry.get("config") or {}, entry.get("tool_schema")
    if config.get("type") != "native":
        raise ConfigError(f"{path}: config.type of {name} is {config.get('type')!r}; verl 0.9 knows only native")
    searches = isinstance(kind, type) and issubclass(kind, SearchTool)
    if searches:
        settings, _ = search_settings(config)
        schema = schema or default_schema(settings.max_queries).model_dump(exclude_none=True)
    called = schema["function"]["name"] if schema else attribute
    return Tool(called, schema, config, searches)


def _functions(setup: Setup) -> list[Tool]:
    from verl.tools.function_tool import load_function_tools_from_path
    from verl.utils.import_utils import resolve_config_path

    path = setup.get(f"{MULTI_TURN}.function_tool_path")
    if not path:
        return []
    try:
        functions = load_function_tools_from_path(resolve_config_path(path))
    except Exception as error:  # a file of the user's: running it may raise anything
        raise ConfigError(
            f"{MULTI_TURN}.function_tool_path={path} cannot be loaded: {type(error).__name__}: {one_line(str(error))}; "
            "correct the path or the file"
        ) from error
    dumped = [one.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for one in functions]
    return [Tool(one.name, schema, {}, False) for one, schema in zip(functions, dumped, strict=True)]


def _names(setup: Setup, names: list[str]) -> Iterator[Finding]:
    """Whether what prompts and rows call a tool is a tool."""
    spoken, key = setup.get(f"{MULTI_TURN}.format"), str(setup.get("data.prompt_key") or "prompt")
    have = f"the run has {', '.join(names)}"
    rename = "rename the tool (tool_schema.function.name), or "
    if spoken == "search_r1" and len(names) > 1 and "search" not in names:
        message = f"the format search_r1 calls a tool named search, {have}"
        yield Finding(CHECK, "fail", message, f"{rename}set {MULTI_TURN}.format=mtgrpo_xml or hermes")
    called: set[str] = set()
    if spoken in CUT_FORMATS:  # the prompt alone says how tools are called
        called = {name for row in setup.rows for message in row[key] for name in _called_in(message)}
    if called and not called & set(names):
        message = f"the prompts call {', '.join(sorted(called))}, {have}: every call would fail as unknown_tool"
        yield Finding(CHECK, "fail", message, f"{rename}write its name into the prompts (mtgrpo data --system-prompt)")
    yield from _explained(setup, str(spoken), key)
    chosen = {name for row in setup.rows for name in (row.get("extra_info") or {}).get("tool_selection") or []}
    if chosen and not chosen & set(names):
        message = f"extra_info.tool_selection names {', '.join(sorted(chosen))}, {have}: rollouts would have no tool"
        yield Finding(CHECK, "fail", message, f"{rename}correct the rows (mtgrpo data)")


def _explained(setup: Setup, spoken: str, key: str) -> Iterator[Finding]:
    """Whether the prompts explain the format that the run reads."""
    texts = [str(message.get("content")) for row in setup.rows for message in row[key]]
    shown = [name for name, rules in FORMATS.items() if any(f"<{rules.call}>" in text for text in texts)]
    if shown and spoken in FORMATS and spoken not in shown:
        message = (
            f"the prompts explain calls of the format {shown[0]}, and the run reads {spoken}: no call would be found"
        )
        yield Finding(CHECK, "fail", message, f"set {MULTI_TURN}.format={shown[0]}, or mtgrpo data --format {spoken}")


def _called_in(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    return _CALLED.findall(content) if isinstance(content, str) else []


def _lengths(setup: Setup) -> Iterator[Finding]:
    """Whether verl cuts results once more, in the middle of a word."""
    key = f"{MULTI_TURN}.max_tool_response_length"
    most = setup.get(key)
    for tool in setup.tools:
        longest = tool.config.get("max_chars", 3000) if tool.searches else None
        if longest and longest > most:
            message = f"{tool.name} gives up to {longest} characters (max_chars), and verl cuts results at {key}={most}"
            yield Finding(CHECK, "warn", message, f"set {key}={longest} or more, or max_chars of the tool to {most}")
