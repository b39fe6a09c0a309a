"""Check that prompts and tool results fit, measured for the first questions with the policy's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median_high

from verl_mtgrpo.doctor.chat import prompt_ids
from verl_mtgrpo.doctor.findings import Finding, Status
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup, Tool
from verl_mtgrpo.integration.roles import cast_of, plays_roles
from verl_mtgrpo.integration.rollout.search_settings import search_settings
from verl_mtgrpo.retrieval import Passage, render_passages
from verl_mtgrpo.roles.prompts import results_in

CHECK = "lengths"
CHARS_PER_TOKEN = 4
"""Rough number of characters per token of English text, for results that could not be measured."""
LONGER = "raise data.max_response_length, or lower k or max_chars of the search tool"
LONGER_OWN = f"raise data.max_response_length, or lower {MULTI_TURN}.max_tool_response_length"
_RESPONSE, _PROMPT = "data.max_response_length", "data.max_prompt_length"


def lengths(setup: Setup) -> Iterator[Finding]:
    """Yield whether prompts fit ``data.max_prompt_length``, and tool results the rows and prompts that they are in."""
    problems, measured = [], []
    if setup.builder is not None and setup.rows:
        key = str(setup.get("data.prompt_key") or "prompt")
        prompts = [len(prompt_ids(setup, row[key])) for row in setup.rows]
        problems += _prompts(setup, prompts)
        measured.append(f"prompts up to {max(prompts)} of {setup.get(f'{ROLLOUT}.prompt_length')} tokens")
    if setup.tokenizer is not None and setup.found:
        results = [(tool.name, _tokens(setup, tool, passages)) for tool, passages in setup.found]
        if stay := [tokens for tool, tokens in results if _stays(setup, tool)]:
            problems += _results(setup, stay)
            measured.append(f"tool results of {min(stay)} to {max(stay)} in a response of {_response(setup)}")
        for reader, tools in _readers(setup):
            if read := [tokens for tool, tokens in results if tool in tools]:
                problems += _read(setup, reader, read)
                measured.append(f"tool results of {min(read)} to {max(read)} in the prompt of {reader}")
    else:
        problems += _estimated(setup)
    if not measured and not problems:
        yield Finding(CHECK, "skip", "nothing to measure without a tokenizer and questions that pass the check data")
        return
    yield from problems or [Finding(CHECK, "ok", ", ".join(measured))]


def _response(setup: Setup) -> int:
    return int(setup.get(f"{ROLLOUT}.response_length"))


def _prompt(setup: Setup) -> int:
    return int(setup.get(f"{ROLLOUT}.prompt_length"))


def _stays(setup: Setup, tool: str) -> bool:
    """Return True if results of this tool are in the row of its caller: not if the call ends a role's output."""
    if not plays_roles(setup.config):
        return True
    return any(tool in role.tools and not role.call_ends for role in cast_of(setup.config).roles.values())


def _readers(setup: Setup) -> Iterator[tuple[str, list[str]]]:
    """Yield the roles whose prompt has results of other roles' tools, each with these tools."""
    if not plays_roles(setup.config):
        return
    cast = cast_of(setup.config)
    for name, template in cast.prompts.items():
        if tools := [tool for one in results_in(template) for tool in cast.roles[one].tools]:
            yield name, tools


def _read(setup: Setup, reader: str, results: list[int]) -> Iterator[Finding]:
    """Yield what is wrong with results of this length in the prompt of a role."""
    typical, room = median_high(results), _prompt(setup)
    if typical >= room:
        message = f"{reader} reads results of {typical} tokens (median), {_PROMPT}={room}: an output whose prompt is "
        fix = LONGER.replace(_RESPONSE, _PROMPT)
        yield Finding(CHECK, _fit(results, room), f"{message}longer is dropped", fix)


def _fit(results: list[int], room: int) -> Status:
    """Return the status of results whose median does not fit: a warning where some do."""
    return "fail" if min(results) >= room else "warn"


def _prompts(setup: Setup, prompts: list[int]) -> Iterator[Finding]:
    room = _prompt(setup)
    too_long = [length for length in prompts if length > room]
    left_out = setup.get("data.filter_overlong_prompts")
    if not too_long or (left_out and len(too_long) < len(prompts)):
        return
    message = (
        f"{len(too_long)} of the first {len(prompts)} prompts have more than {room} tokens (up to {max(too_long)})"
    )
    cut = f"{message}: verl {'leaves them out' if left_out else 'cuts off their beginning, with the instructions'}"
    fix = f"set data.max_prompt_length={max(too_long)} or more"
    certain = len(too_long) == len(prompts) and not left_out  # where verl leaves long prompts out, others may remain
    yield Finding(CHECK, "fail" if certain else "warn", cut, fix)


def _tokens(setup: Setup, tool: Tool, passages: list[Passage]) -> int:
    """Return how many tokens the model would read of these passages."""
    settings = search_settings(tool.config)
    text = render_passages(passages, template=settings.template, max_chars=settings.max_chars)
    text = text[: int(setup.get(f"{MULTI_TURN}.max_tool_response_length"))]
    return len(setup.tokenizer.encode(text, add_special_tokens=False))


def _results(setup: Setup, results: list[int]) -> Iterator[Finding]:
    room, turns = _response(setup), setup.get(f"{MULTI_TURN}.max_assistant_turns")
    typical = median_high(results)
    if typical >= room:
        message = f"the search results of the first questions have {typical} tokens (median), {_RESPONSE}={room}"
        fix = f"{LONGER}; {typical} tokens are for one result"
        yield Finding(CHECK, _fit(results, room), f"{message}: no answer can follow them", fix)
    elif turns and (turns - 1) * typical >= room:
        message = f"{turns - 1} search results of {typical} tokens (median) fill data.max_response_length={room}"
        yield Finding(CHECK, "warn", f"{message} before the last turn", LONGER)


def _estimated(setup: Setup) -> Iterator[Finding]:
    """Warn by the settings alone; results may be shorter than the limit, so this never refuses a run."""
    most = int(setup.get(f"{MULTI_TURN}.max_tool_response_length") or 0)
    for tool in setup.tools:
        longest = min(most, search_settings(tool.config).max_chars or most) if tool.searches else most
        tokens, fix = longest // CHARS_PER_TOKEN, LONGER if tool.searches else LONGER_OWN
        message = f"{tool.name} may return {longest} characters, about {tokens} tokens at {CHARS_PER_TOKEN} characters"
        if _stays(setup, tool.name) and tokens >= (room := _response(setup)):
            yield Finding(CHECK, "warn", f"{message} each, and {_RESPONSE}={room}", fix)
        readers = [reader for reader, tools in _readers(setup) if tool.name in tools]
        if readers and tokens >= (room := _prompt(setup)):
            message = f"{message} each, which {' and '.join(readers)} would read, and {_PROMPT}={room}"
            yield Finding(CHECK, "warn", message, fix.replace(_RESPONSE, _PROMPT))
