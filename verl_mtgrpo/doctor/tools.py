"""Check the tools that the agent may call; they are read from their files as in verl, but not created."""

from __future__ import annotations

import importlib
import re
from collections.abc import Generator, Iterator
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.doctor.findings import Finding, one_line
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup, Tool
from verl_mtgrpo.errors import AbsentError, ConfigError
from verl_mtgrpo.integration.parts import TOOL_LOOPS, check_tool_file
from verl_mtgrpo.integration.roles import cast_of, plays_roles
from verl_mtgrpo.integration.rollout.search_settings import search_settings

CHECK = "tools"
_FOR_SEARCH = ("paper_v1", "paper_v2")
_SOUNDS_LIKE_SEARCH = re.compile(r"search|retrieve|retrieval|wiki|brows|lookup|look_up|query|find", re.IGNORECASE)


def tools(setup: Setup) -> Iterator[Finding]:
    """Yield whether the tools can be created, and whether the prompts call them by their names."""
    yield from setup.toolbox.said()
    names = [tool.name for tool in setup.tools]
    if names:
        problems = [
            *(_of_roles if plays_roles(setup.config) else _names)(setup, names),
            *_paid_for_search(setup),
            *_lengths(setup),
        ]
        yield from problems or [Finding(CHECK, "ok", ", ".join(_described(tool) for tool in setup.tools))]


def open_tools(setup: Setup) -> Generator[Finding, None, list[Tool]]:
    """Read the tools from their files and return them."""
    loop = setup.get(f"{ROLLOUT}.agent.default_agent_loop")
    if loop not in TOOL_LOOPS and not (plays_roles(setup.config) and _used_by_roles(setup)):
        yield Finding(CHECK, "skip", "the agent loop calls no tools, or is not one of this package")
        return []
    check_tool_file(setup.config)
    found = declared(setup)
    if not found:
        yield _no_tool(setup)
    return found


def _used_by_roles(setup: Setup) -> dict[str, list[str]]:
    """Return the tools that roles may call, each with those roles."""
    used: dict[str, list[str]] = {}
    for name, role in cast_of(setup.config).roles.items():
        for tool in role.tools:
            used.setdefault(tool, []).append(name)
    return used


def _of_roles(setup: Setup, names: list[str]) -> Iterator[Finding]:
    """Refuse tools of roles that the run does not have: each output of such a role would fail."""
    for tool, users in _used_by_roles(setup).items():
        if tool not in names:
            message = f"trainer.turn.roles.names.{users[0]}.tools has {tool}, but the tools of this run are "
            fix = "correct the name, or add the tool to the file of tools"
            yield Finding(CHECK, "fail", f"{message}{', '.join(names)}", fix)


def declared(setup: Setup) -> list[Tool]:
    """Return the tools of the run's two files, whichever agent loop is to call them.

    Raises:
        ConfigError: One of the files, or a tool in it, cannot be read.
    """
    return [*_native(setup.get(f"{MULTI_TURN}.tool_config_path")), *_functions(setup)]


def _no_tool(setup: Setup) -> Finding:
    """Return the finding for a file without tools; the check of the parts reports that no file is named."""
    listed, functions = setup.get(f"{MULTI_TURN}.tool_config_path"), setup.get(f"{MULTI_TURN}.function_tool_path")
    if not listed and not functions:
        return Finding(CHECK, "skip", "no file of tools is named")
    if functions:
        fix = "put @function_tool (from verl.tools.function_tool) above each function that is a tool"
        return Finding(CHECK, "fail", f"{functions} declares no tool", fix)
    fix = "list at least one, as the packaged search_tool.yaml does"
    return Finding(CHECK, "fail", f"{listed} declares no tool", fix)


def _described(tool: Tool) -> str:
    return f"{tool.name} (k={tool.config.get('k', 3)})" if tool.searches else tool.name


def _native(path: str | None) -> list[Tool]:
    from verl.utils.import_utils import resolve_config_path

    if not path:
        return []
    try:
        listed = OmegaConf.select(OmegaConf.load(resolve_config_path(path)), "tools") or []
        entries = [OmegaConf.to_container(one, resolve=True) for one in listed]
    except Exception as error:  # YAML's and OmegaConf's errors have no common root
        raise ConfigError(
            f"{path} is not a tool YAML: {one_line(str(error))}", fix="see the packaged search_tool.yaml"
        ) from error
    return [_native_tool(entry, path) for entry in entries]


def _native_tool(entry: Any, path: str) -> Tool:
    from verl_mtgrpo.integration.rollout.search_tool import SearchTool, default_schema

    name = str(entry.get("class_name"))
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the module is the user's: importing it may raise anything
        raise AbsentError(
            f"the tool class {name} of {path} cannot be imported: {type(error).__name__}: {one_line(str(error))}",
            fix="fix class_name, or install its package where training runs",
        ) from error
    config, schema = entry.get("config") or {}, entry.get("tool_schema")
    if config.get("type") != "native":
        raise ConfigError(f"{path}: config.type of {name} is {config.get('type')!r}", fix="verl 0.9 knows only native")
    searches = isinstance(kind, type) and issubclass(kind, SearchTool)
    if searches:
        most = search_settings(config).max_queries
        schema = schema or default_schema(most).model_dump(exclude_none=True)
    called = _validated(schema, path)["function"]["name"] if schema else attribute
    return Tool(called, schema, config, searches)


def _validated(schema: Any, path: str) -> Any:
    """Return a tool's schema if verl accepts it."""
    from pydantic import ValidationError
    from verl.tools.schemas import OpenAIFunctionToolSchema

    try:
        OpenAIFunctionToolSchema.model_validate(schema)
    except ValidationError as error:
        wrong = ", ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise ConfigError(
            f"{path}: verl rejects a tool_schema ({wrong})",
            fix="write it as the packaged search_tool.yaml does",
        ) from error
    return schema


def _functions(setup: Setup) -> list[Tool]:
    from verl.tools.function_tool import load_function_tools_from_path
    from verl.utils.import_utils import resolve_config_path

    path = setup.get(f"{MULTI_TURN}.function_tool_path")
    if not path:
        return []
    try:
        functions = load_function_tools_from_path(resolve_config_path(path))
    except (Exception, SystemExit) as error:  # a file of the user's: running it may raise anything
        raise AbsentError(
            f"{MULTI_TURN}.function_tool_path={path} cannot be loaded: {type(error).__name__}: {one_line(str(error))}",
            fix="fix the path or the file",
        ) from error
    dumped = [one.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for one in functions]
    return [Tool(one.name, schema, {}, False) for one, schema in zip(functions, dumped, strict=True)]


def _names(setup: Setup, names: list[str]) -> Iterator[Finding]:
    """Yield a finding if the format or the rows name a tool that the run does not have."""
    have, rename = f"but the run has {', '.join(names)}", "rename the tool (tool_schema.function.name), or "
    chosen = [set((row.get("extra_info") or {}).get("tool_selection") or names) for row in setup.rows]
    left = [one & set(names) for one in chosen] or [set(names)]
    if setup.get(f"{MULTI_TURN}.format") == "search_r1" and all(len(one) > 1 and "search" not in one for one in left):
        message = f"the format search_r1 calls a tool named search, {have}"
        yield Finding(CHECK, "fail", message, f"{rename}set {MULTI_TURN}.format=mtgrpo_xml or hermes")
    without = [one for one, tools in zip(chosen, left, strict=False) if not tools]
    if without:
        unknown = ", ".join(sorted(set().union(*without)))
        message = f"extra_info.tool_selection names {unknown}, {have}: {len(without)} of the first {len(chosen)} "
        message += "questions would have no tool"
        certain = len(without) == len(chosen)
        yield Finding(CHECK, "fail" if certain else "warn", message, f"{rename}fix the rows (mtgrpo data)")


def _paid_for_search(setup: Setup) -> Iterator[Finding]:
    """Warn if rewards for search pay tools that seem not to search: the groups cannot see what a tool YAML names."""
    preset, pay = setup.get("reward.turn.preset"), setup.get("reward.turn.pay")
    if preset not in _FOR_SEARCH or pay == "outcome" or setup.get("reward.reward_manager.name") != "mtgrpo":
        return
    if any(tool.searches or _SOUNDS_LIKE_SEARCH.search(tool.name) for tool in setup.tools):
        return
    names = ", ".join(tool.name for tool in setup.tools)
    message = f"reward.turn.preset={preset} pays for searches whose results hold an accepted answer, and no tool of "
    message += f"this run seems to search: {names}"
    fix = "set reward.turn.preset=tool_use or a function of your own (docs/rewards.md), or keep it if that is meant"
    yield Finding(CHECK, "warn", message, fix)


def _lengths(setup: Setup) -> Iterator[Finding]:
    """Warn if verl would cut results a second time, perhaps in the middle of a word."""
    key = f"{MULTI_TURN}.max_tool_response_length"
    most = setup.get(key)
    for tool in setup.tools:
        longest = search_settings(tool.config).max_chars if tool.searches else None
        if longest and longest > most:
            message = (
                f"{tool.name} returns up to {longest} characters (max_chars), but verl cuts results at {key}={most}"
            )
            yield Finding(CHECK, "warn", message, f"set {key}={longest} or more, or max_chars of the tool to {most}")
