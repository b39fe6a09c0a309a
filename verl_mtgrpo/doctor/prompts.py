"""Check that the prompts say how to call a tool, in the format that the run reads.

A model that is never told does not call tools, and a run without calls silently trains something else. But a prompt may
explain calls in a hundred ways, and the policy may already know the format, so nothing here refuses a run. The check
looks for the format's tag in the prompt, and for the tools in what the chat template renders.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from verl_mtgrpo.doctor.chat import prompt_ids
from verl_mtgrpo.doctor.findings import Finding, one_line
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup
from verl_mtgrpo.integration.parts import TOOL_LOOPS
from verl_mtgrpo.integration.roles import ROLES
from verl_mtgrpo.rewards.formats import CUT_FORMATS, FORMATS, TextFormat

CHECK = "prompts"
_NAME = re.compile(r'"name"\s*:\s*"([\w.-]+)"')
_SHOWN = "as the system prompt of `mtgrpo data --format {0}` does"


def prompts(setup: Setup) -> Iterator[Finding]:
    """Yield whether the first training questions tell the model how to call tools."""
    spoken, loop = str(setup.get(f"{MULTI_TURN}.format")), setup.get(f"{ROLLOUT}.agent.default_agent_loop")
    if loop not in TOOL_LOOPS:
        why = "roles have prompts of their own" if loop == ROLES else "it calls no tools, or is not one of this package"
        yield Finding(CHECK, "skip", f"prompts of the agent loop {loop} are not looked at: {why}")
        return
    if not setup.rows or not setup.tools:
        yield Finding(CHECK, "skip", "needs questions that passed the check data, and the tools, but has not got both")
        return
    if setup.builder is None and spoken not in CUT_FORMATS:
        yield Finding(CHECK, "skip", "without the tokenizer, how the chat template shows the tools was not checked")
        return
    rules, key = FORMATS.get(spoken), str(setup.get("data.prompt_key") or "prompt")
    try:
        shown = [_rendered(setup, row[key]) for row in setup.rows]
        bare = [_rendered(setup, row[key], tools=False) for row in setup.rows]
    except Exception as error:  # a chat template may raise anything; the check chat says more
        yield Finding(CHECK, "skip", f"the prompts cannot be rendered: {type(error).__name__}: {one_line(str(error))}")
        return
    problems = [*_other_names(setup, rules, key)] if rules else []
    if spoken in CUT_FORMATS:
        problems += _unsaid(CUT_FORMATS[spoken], shown, _other_format(setup, spoken, key))
    elif any(tool.schema for tool in setup.tools):
        problems += _unseen(setup, rules, shown, bare, _other_format(setup, spoken, key))
    how = f"<{rules.call}>" if rules and rules.name in CUT_FORMATS else "the tools, by the chat template"
    yield from problems or [Finding(CHECK, "ok", f"the first {len(shown)} questions show {how}")]


def _rendered(setup: Setup, messages: Sequence[Mapping[str, Any]], *, tools: bool = True) -> str:
    """Return the prompt as the policy reads it; without its tokenizer, the text of the messages."""
    if setup.builder is None:
        return "\n".join(map(_text, messages))
    if tools:
        return setup.tokenizer.decode(prompt_ids(setup, messages))
    return setup.tokenizer.decode(setup.builder.build_initial_tokens(list(messages), tools=None))


def _text(message: Mapping[str, Any]) -> str:
    """Return the text of a message; from a list of parts, take the texts."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [content]
    return "\n".join(str(part.get("text") or "") if isinstance(part, Mapping) else str(part or "") for part in parts)


def _instructions(setup: Setup, key: str) -> str:
    """Return the instructions in all prompts: messages not by the user, and the common beginning of the user's.

    The questions themselves are left out, because they may contain anything: an HTML tag, or JSON with a key ``name``.
    """
    rows = [row[key] for row in setup.rows]
    others = {_text(message) for row in rows for message in row if message.get("role") != "user"}
    users = {"\n".join(_text(message) for message in row if message.get("role") == "user") for row in rows}
    return "\n".join([*sorted(others), _common_beginning(users) if len(users) > 1 else ""])


def _common_beginning(texts: Collection[str]) -> str:
    """Return the common beginning of all texts, which is that of the first and the last in alphabetical order."""
    first, last = min(texts), max(texts)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


def _other_format(setup: Setup, spoken: str, key: str) -> str | None:
    """Return the format whose calls the instructions explain, if it is not the run's."""
    said = _instructions(setup, key)
    # An explanation of a call shows its end too; an opening tag alone may be HTML.
    explained = [name for name, rules in FORMATS.items() if f"<{rules.call}>" in said and f"</{rules.call}>" in said]
    return explained[0] if explained and spoken not in explained else None


def _other_names(setup: Setup, rules: TextFormat, key: str) -> Iterator[Finding]:
    """Warn if the example calls in the instructions, as JSON in the format's tags, call none of the run's tools."""
    if not rules.json_call:
        return
    calls = re.findall(f"<{rules.call}>(.*?)</{rules.call}>", _instructions(setup, key), re.DOTALL)
    called = {name for call in calls for name in _NAME.findall(call)}
    names = [tool.name for tool in setup.tools]
    if called and not called & set(names):
        message = f"the prompts call {', '.join(sorted(called))}, but the run has {', '.join(names)}"
        fix = "rename the tool (tool_schema.function.name), or write its name into the prompts"
        yield Finding(CHECK, "warn", f"{message}: such calls fail as unknown_tool", f"{fix} (mtgrpo data --format)")


def _unsaid(rules: TextFormat, shown: Sequence[str], other: str | None) -> Iterator[Finding]:
    """Warn of prompts that do not explain the format, for formats that chat templates do not explain."""
    tag = f"<{rules.call}>"
    without = sum(tag not in text for text in shown)
    if not without:
        return
    message = f"{without} of the first {len(shown)} questions never say how to call a tool: no {tag} in the prompt"
    if other:
        message = f"the prompts explain calls of the format {other}, but the run reads {rules.name}: {message}"
    fix = f"explain it in the prompt ({_SHOWN.format(rules.name)})"
    fix += f", or set {MULTI_TURN}.format={other}" if other else ""
    yield Finding(CHECK, "warn", message, f"{fix}; a policy that already knows the format needs none")


def _unseen(
    setup: Setup, rules: TextFormat | None, shown: Sequence[str], bare: Sequence[str], other: str | None
) -> Iterator[Finding]:
    """Warn if neither the chat template nor the prompts explain the format."""
    names = [tool.name for tool in setup.tools]
    tag = f"<{rules.call}>" if rules else ""
    if other:
        message = f"the prompts explain calls of the format {other}, but the run reads {rules.name if rules else '?'}"
        fix = f"set {MULTI_TURN}.format={other}, or write other prompts ({_SHOWN.format('hermes')})"
        yield Finding(CHECK, "warn", message, fix)
    elif tag and all(tag in text for text in shown):
        return
    elif list(shown) == list(bare):
        if not tag and all(any(name in text for name in names) for text in shown):
            return  # explained by hand, in a format whose tags we do not know
        message = "the chat template shows the model no tools: prompts are the same with and without them"
        fix = f"use a model whose template shows tools, explain {tag or 'how to call'} in the prompt, or choose "
        yield Finding(CHECK, "warn", message, f"{fix}{MULTI_TURN}.format={' or '.join(CUT_FORMATS)}")
    elif tag and not _writes_calls_as(setup, tag):
        message = f"the chat template shows the tools, but neither it nor the prompt ever says {tag}"
        fix = f"set {MULTI_TURN}.format to the one that this model speaks, or explain {tag} in the prompt"
        yield Finding(CHECK, "warn", f"{message}: the model may write calls in another way, which is not parsed", fix)


def _writes_calls_as(setup: Setup, tag: str) -> bool:
    """Return True if the template writes earlier calls of the assistant in these tags, or if it cannot be rendered."""
    call = {"type": "function", "function": {"name": setup.tools[0].name, "arguments": {"query": "the tower"}}}
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        return tag in setup.tokenizer.apply_chat_template(said, tokenize=False)
    except Exception:  # a template may raise anything, and then we cannot tell
        return True
