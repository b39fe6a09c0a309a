"""Check the policy's chat template by one rollout of two turns through the agent loop itself.

It is the run's agent loop with verl's builder of token ids; only the model is replaced by two texts, and the tool by a
function. So the check sees what training would see: which tokens count as generated, and which are between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.doctor.findings import Finding, one_line
from verl_mtgrpo.doctor.models import MODEL
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup, Tool
from verl_mtgrpo.integration.parts import RAW, RAW_LOOPS, TOOL_LOOPS
from verl_mtgrpo.integration.rollout.end_of_turn import EndOfTurn, closing_tags, end_of_turn
from verl_mtgrpo.rewards.formats import ANSWER as ANSWER_TAG
from verl_mtgrpo.rewards.formats import CUT_FORMATS, FORMATS
from verl_mtgrpo.threads import run_apart

QUESTION, RESULT, ANSWER = "Where is the tower?", "The tower is in Oslo, by the harbour.", "<answer>Oslo</answer>"
_THOUGHT = "I have to look."
_ROOM = 100_000


def chat(setup: Setup) -> Iterator[Finding]:
    """Run a question, a tool call, its result and an answer through the run's agent loop."""
    spoken = str(setup.get(f"{MULTI_TURN}.format"))
    loop = setup.get(f"{ROLLOUT}.agent.default_agent_loop")
    if setup.builder is None or loop not in TOOL_LOOPS:
        what = "the tokenizer" if setup.builder is None else "an agent loop of this package that calls tools"
        yield Finding("chat", "skip", f"two turns were not tried without {what}")
        return
    if spoken not in FORMATS:
        yield Finding("chat", "skip", f"two turns were not tried: the layout of calls in {spoken} is unknown here")
        return
    if loop in RAW_LOOPS and spoken not in CUT_FORMATS:
        yield Finding("chat", "skip", f"two turns were not tried: {RAW} cannot read {spoken} (see the check turns)")
        return
    from jinja2 import TemplateError

    try:
        yield from _two_turns(setup, loop, spoken)
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:  # of the template or verl
        what = "the question" if loop in RAW_LOOPS else "a tool call and its result"
        message = f"the chat template fails on {what}: {type(error).__name__}: {one_line(str(error))}"
        yield Finding("chat", "fail", message, _template_fix(loop))


def _template_fix(loop: str) -> str:
    """Return what to do about a chat template that fails; the raw agent is a way out only if it is not in use yet."""
    if loop in RAW_LOOPS:
        return (
            f"set a Jinja template that renders messages of the roles system and user as {MODEL}.custom_chat_template"
        )
    return (
        "use an instruct model whose template knows the role tool, set a Jinja template that does as "
        f"{MODEL}.custom_chat_template, or do without chat roles: {ROLLOUT}.agent.default_agent_loop={RAW} with "
        f"{MULTI_TURN}.format=search_r1"
    )


def _two_turns(setup: Setup, loop: str, spoken: str) -> Iterator[Finding]:
    tool = setup.tools[0] if setup.tools else Tool("search", None, {}, True)
    ends = end_of_turn(setup.tokenizer, setup.get("data.apply_chat_template_kwargs"), [setup.get(f"{MODEL}.path")])
    server = _Reciter(setup.tokenizer, ends, [call_text(spoken, tool), _thought(spoken) + ANSWER])
    output = run_apart(_rollout(setup, loop, tool, server))
    decode, ids, mask = setup.tokenizer.decode, output.response_ids, output.response_mask
    spans = [list(ids[start:end]) for start, end in _spans(mask)]
    between = decode([token for token, ours in zip(ids, mask, strict=True) if not ours])
    if len(server.said) < 2:
        message = f"the tool parser {spoken} does not find the call that the tokenizer decodes as {decode(ids)!r}"
        fix = f"choose another {MULTI_TURN}.format, or a tokenizer that keeps the tags of this one as they are"
        yield Finding("chat", "fail", message, fix)
        return
    said = server.said
    if spoken in CUT_FORMATS:  # the loop ends a turn at its closing tag
        from verl_mtgrpo.integration.rollout.cutting import tokens_to_keep

        closing = [f"</{tag}>" for tag in (CUT_FORMATS[spoken].call, ANSWER_TAG)]
        said = [one[: tokens_to_keep(one, closing, decode)] for one in said]
    if spans != said:
        message = f"the tokens with mask 1 are not those that were generated: {len(spans)} turns of {len(said)}"
        yield Finding("chat", "fail", message, _template_fix(loop))
        return
    if _bare(RESULT) not in _bare(between):
        message = "the chat template drops the tool's result: it shows no message of the role tool"
        yield Finding("chat", "fail", message, _template_fix(loop))
        return
    warnings = [*_no_end_of_turn(setup, ends, loop, spoken), *_malformed(output, ends, spoken)]
    yield from warnings
    if not warnings:
        lengths = " and ".join(str(len(span)) for span in spans)
        message = f"two turns of {spoken} through {loop}: {lengths} generated tokens, the tool's result between them"
        opens = f"; the template opens them with {one_line(ends.opened)}" if ends.opened else ""
        yield Finding("chat", "ok", message + opens)


def _no_end_of_turn(setup: Setup, ends: EndOfTurn, loop: str, spoken: str) -> Iterator[Finding]:
    """Warn if turns are cut, and the template has no end token to separate them from the next message."""
    if spoken not in CUT_FORMATS or loop in RAW_LOOPS or ends.token is not None:
        return
    written = f"{ends.text!r}, which is {len(ends.closing)} tokens" if ends.text else "no token"
    message = f"after a turn the chat template writes {written}: only the closing tags stop the model there"
    fix = (
        f"use the tokenizer of the instruct model, whose end of turn is one token ({MODEL}.tokenizer_path; now "
        f"{setup.tokenizer.eos_token!r} ends texts), or do without chat roles: {ROLLOUT}.agent.default_agent_loop={RAW}"
    )
    yield Finding("chat", "warn", message, fix)


def _malformed(output: Any, ends: EndOfTurn, spoken: str) -> Iterator[Finding]:
    """Warn if the template opens every turn with a thought, for which the format has no place."""
    if not ends.opened:
        return
    texts = [turn.text for turn in output.extra_fields["transcript"].turns]
    if not all(map(FORMATS[spoken].well_formed, texts)):
        message = f"the chat template opens turns with {one_line(ends.opened)}: no such turn is well formed in {spoken}"
        fix = (
            "let the model write the whole turn (+data.apply_chat_template_kwargs.enable_thinking=False where the "
            f"template knows that), or choose a format that begins with this tag by {MULTI_TURN}.format"
        )
        yield Finding("chat", "warn", message, fix)


async def _rollout(setup: Setup, loop: str, tool: Tool, server: _Reciter) -> Any:
    """Return one rollout of the run's agent loop, without its limits."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
    from verl.tools.function_tool import FunctionTool
    from verl.tools.schemas import OpenAIFunctionToolSchema
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from verl_mtgrpo.integration.rollout.agent_loop import RawContinuationAgentLoop, TurnToolAgentLoop
    from verl_mtgrpo.integration.rollout.search_tool import default_schema

    schema = OpenAIFunctionToolSchema.model_validate(tool.schema) if tool.schema else default_schema(1)
    known = FunctionTool(name=tool.name, fn=_result, tool_schema=schema, is_async=False)
    kind = RawContinuationAgentLoop if loop in RAW_LOOPS else TurnToolAgentLoop
    made = kind(
        trainer_config=DictConfigWrap(_without_limits(setup)),
        server_manager=server,
        tokenizer=setup.tokenizer,
        processor=None,  # pyright: ignore[reportArgumentType]  (as verl does for text models)
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(setup.config.data),
        hf_model_type=None,
        tools=ToolListWrap([known]),
    )
    made.continuous_token_builder = setup.builder
    return await made.run({}, raw_prompt=[{"role": "user", "content": QUESTION}])


def _without_limits(setup: Setup) -> Any:
    rollout = OmegaConf.to_container(setup.config.actor_rollout_ref.rollout, resolve=True)
    multi_turn = {"max_assistant_turns": None, "max_user_turns": None, "max_tool_response_length": _ROOM}
    room = {"prompt_length": _ROOM, "response_length": _ROOM, "multi_turn": multi_turn}
    return OmegaConf.create({"actor_rollout_ref": {"rollout": OmegaConf.merge(rollout, room)}})


def _result(**_: Any) -> str:
    return RESULT


class _Reciter:
    """Stand in for verl's client of the rollout servers, and generate the given texts one after the other.

    Like a model, it continues a thought that the chat template opened, and ends turns as the template does.
    """

    def __init__(self, tokenizer: Any, ends: EndOfTurn, texts: Sequence[str]) -> None:
        self._tokenizer, self._ends, self._texts = tokenizer, ends, list(texts)
        self.said: list[list[int]] = []

    async def generate(self, *_: Any, prompt_ids: Sequence[int], **__: Any) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        text = self._texts[len(self.said)]
        if opened := self._ends.opened_in(prompt_ids, self._tokenizer):
            begun = opened.strip()
            text = text.removeprefix(begun) if text.startswith(begun) else _THOUGHT + closing_tags(opened) + text
        end = self._tokenizer.eos_token_id if self._ends.token is None else self._ends.token
        ids = [*self._tokenizer.encode(text, add_special_tokens=False), end]
        self.said.append(ids)
        return TokenOutput(token_ids=ids, stop_reason="completed")


def call_text(spoken: str, tool: Tool) -> str:
    """Return a call of the tool as a model that uses the format would write it."""
    parameters = (tool.schema or {}).get("function", {}).get("parameters", {})
    arguments = dict.fromkeys(parameters.get("required") or ["query"], "the tower")
    rules = FORMATS[spoken]
    if not rules.json_call:
        inside = "the tower"
    else:
        key = "args" if spoken == "mtgrpo_xml" else "arguments"
        inside = json.dumps({"name": tool.name, key: arguments})
    return f"{_thought(spoken)}<{rules.call}>{inside}</{rules.call}>"


def _thought(spoken: str) -> str:
    tag = FORMATS[spoken].thought
    return f"<{tag}>{_THOUGHT}</{tag}>" if tag else ""


def _spans(mask: Sequence[int]) -> list[tuple[int, int]]:
    from verl_mtgrpo.integration.rollout.turn_spans import turn_spans

    return turn_spans(list(mask))


def _bare(text: str) -> str:
    return "".join(text.split()).lower()


def prompt_ids(setup: Setup, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the token ids of a prompt as the agent loop builds it."""
    spoken = setup.get(f"{MULTI_TURN}.format")
    schemas = None if spoken in CUT_FORMATS else [tool.schema for tool in setup.tools if tool.schema]
    return setup.builder.build_initial_tokens(list(messages), tools=schemas)
