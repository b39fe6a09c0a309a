"""The policy's tokenizer and chat template: one rollout of two turns through the agent loop itself.

The loop is the run's own, with verl's own builder of token ids; only the model is replaced by two texts and the tool by
a function. So what is checked is what is trained on: which tokens count as generated, and what stands between them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.integration.checks.findings import Finding, one_line
from verl_mtgrpo.integration.checks.setup import MULTI_TURN, ROLLOUT, Setup, Tool
from verl_mtgrpo.integration.parts import LOOPS
from verl_mtgrpo.integration.preflight import check_tokenizer
from verl_mtgrpo.rewards.formats import ANSWER as ANSWER_TAG
from verl_mtgrpo.rewards.formats import CUT_FORMATS, FORMATS

MODEL = "actor_rollout_ref.model"
QUESTION, RESULT, ANSWER = "Where is the tower?", "The tower is in Oslo, by the harbour.", "<answer>Oslo</answer>"
TEMPLATE_FIX = (
    "use an instruct model whose template knows the role tool, give a Jinja template that does by "
    f"{MODEL}.custom_chat_template, or do without chat roles: {ROLLOUT}.agent.default_agent_loop=mtgrpo_raw_agent"
)
_ROOM = 100_000


def tokenizer(setup: Setup) -> Iterator[Finding]:
    """Load it as verl does; leaves it and verl's builder in ``setup``."""
    from verl.utils.tokenizer import hf_tokenizer
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    path = str(setup.get(f"{MODEL}.tokenizer_path") or setup.get(f"{MODEL}.path"))
    where, problem = _locate(setup, path)
    if problem:
        yield problem
        return
    try:
        trusted = bool(setup.get(f"{MODEL}.trust_remote_code"))
        loaded = hf_tokenizer(where, trust_remote_code=trusted)
    except Exception as error:  # transformers raises many kinds
        message = f"no tokenizer can be loaded from {path}: {type(error).__name__}: {one_line(str(error))[:200]}"
        yield Finding("tokenizer", "fail", message, f"give the folder of a Hugging Face model as {MODEL}.path")
        return
    template = setup.get(f"{MODEL}.custom_chat_template")
    if template:
        loaded.chat_template = template
    check_tokenizer(loaded)
    setup.tokenizer, kind = loaded, _model_type(where)
    try:
        arguments = setup.get("data.apply_chat_template_kwargs") or {}
        setup.builder = create_continuous_token_builder(
            loaded, hf_model_type=kind, chat_template_kwargs=dict(arguments)
        )
    except ValueError as error:  # a multimodal model, or one without the tokens that its family has
        yield Finding("tokenizer", "skip", f"{path}: verl builds its prompts in another way: {one_line(str(error))}")
        return
    template_of = "custom chat template" if template else "chat template of the model"
    yield Finding("tokenizer", "ok", f"{path}: {len(loaded)} tokens, {template_of}, model type {kind}")


def _locate(setup: Setup, path: str) -> tuple[str, Finding | None]:
    """The folder of a model: itself, or in the cache of the Hugging Face hub; nothing is downloaded."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), None
    if "://" in path:
        return path, Finding("tokenizer", "skip", f"{path} is not on this machine's disk and was not fetched")
    if path.startswith(("/", "~", ".")) or path.count("/") > 1:
        fix = f"give the folder of a Hugging Face model, or a name on the hub, as {MODEL}.path"
        return path, setup.absent("tokenizer", f"{MODEL}.path={path} is not there", fix)
    try:
        from huggingface_hub import snapshot_download

        return snapshot_download(path, local_files_only=True), None
    except Exception:  # not in the cache, or no valid name: verl asks the hub
        message = f"{path} is no folder here and not in the Hugging Face cache, so its chat template was not tried"
        return path, Finding("tokenizer", "skip", message, f"hf download {path}, then it is")


def _model_type(folder: str) -> str | None:
    config = Path(folder) / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return None


def chat(setup: Setup) -> Iterator[Finding]:
    """A question, a tool call, its result and an answer, in the run's agent loop."""
    spoken = str(setup.get(f"{MULTI_TURN}.format"))
    loop = setup.get(f"{ROLLOUT}.agent.default_agent_loop")
    if setup.builder is None or loop not in LOOPS:
        what = "the tokenizer" if setup.builder is None else "an agent loop of this package"
        yield Finding("chat", "skip", f"two turns were not tried without {what}")
        return
    if spoken not in FORMATS:
        yield Finding("chat", "skip", f"two turns were not tried: how a call of {spoken} looks is not known here")
        return
    from jinja2 import TemplateError

    try:
        yield _two_turns(setup, loop, spoken)
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:  # of the template or of verl
        message = (
            f"the chat template fails on a tool call and its result: {type(error).__name__}: {one_line(str(error))}"
        )
        yield Finding("chat", "fail", message, TEMPLATE_FIX)


def _two_turns(setup: Setup, loop: str, spoken: str) -> Finding:
    tool = setup.tools[0] if setup.tools else Tool("search", None, {}, True)
    server = _Reciter(setup.tokenizer, [call_text(spoken, tool), _thought(spoken) + ANSWER])
    with ThreadPoolExecutor(1) as pool:  # a thread has no event loop yet, and this one's stays as it is
        output = pool.submit(asyncio.run, _rollout(setup, loop, tool, server)).result()
    decode, ids, mask = setup.tokenizer.decode, output.response_ids, output.response_mask
    spans = [list(ids[start:end]) for start, end in _spans(mask)]
    between = decode([token for token, ours in zip(ids, mask, strict=True) if not ours])
    if len(server.said) < 2:
        message = f"the tool parser {spoken} does not find the call that the tokenizer gives back as {decode(ids)!r}"
        fix = f"choose another {MULTI_TURN}.format, or a tokenizer that keeps the tags of this one as they are"
        return Finding("chat", "fail", message, fix)
    said = server.said
    if spoken in CUT_FORMATS:  # the loop ends a turn at its closing tag
        from verl_mtgrpo.integration.tool_parsers import tokens_to_keep

        closing = [f"</{tag}>" for tag in (CUT_FORMATS[spoken].call, ANSWER_TAG)]
        said = [one[: tokens_to_keep(one, closing, decode)] for one in said]
    if spans != said:
        message = f"the tokens with mask 1 are not those that were generated: {len(spans)} turns of {len(said)}"
        return Finding("chat", "fail", message, TEMPLATE_FIX)
    if _bare(RESULT) not in _bare(between):
        return Finding(
            "chat",
            "fail",
            "the chat template drops the tool's result: it shows no message of the role tool",
            TEMPLATE_FIX,
        )
    lengths = " and ".join(str(len(span)) for span in spans)
    message = f"two turns of {spoken} through {loop}: {lengths} generated tokens, the tool's result between them"
    return Finding("chat", "ok", message)


async def _rollout(setup: Setup, loop: str, tool: Tool, server: _Reciter) -> Any:
    """One rollout of the run's agent loop, without its limits."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
    from verl.tools.function_tool import FunctionTool
    from verl.tools.schemas import OpenAIFunctionToolSchema
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from verl_mtgrpo.integration.agent_loop import RawContinuationAgentLoop, TurnToolAgentLoop
    from verl_mtgrpo.integration.search_tool import default_schema

    schema = OpenAIFunctionToolSchema.model_validate(tool.schema) if tool.schema else default_schema(1)
    known = FunctionTool(name=tool.name, fn=lambda **_: RESULT, tool_schema=schema, is_async=False)
    kind = RawContinuationAgentLoop if loop == "mtgrpo_raw_agent" else TurnToolAgentLoop
    made = kind(
        trainer_config=DictConfigWrap(_without_limits(setup)),
        server_manager=server,
        tokenizer=setup.tokenizer,
        processor=None,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(setup.config.data),
        hf_model_type=None,
        tools=ToolListWrap([known]),
    )
    made.continuous_token_builder = setup.builder
    return await made.run({}, raw_prompt=[{"role": "user", "content": QUESTION}])


def _without_limits(setup: Setup) -> Any:
    rollout = OmegaConf.to_container(setup.config.actor_rollout_ref.rollout, resolve=True)
    rollout.update(prompt_length=_ROOM, response_length=_ROOM)  # type: ignore[union-attr,call-arg]
    rollout["multi_turn"].update(max_assistant_turns=None, max_user_turns=None, max_tool_response_length=_ROOM)  # type: ignore[index,call-overload]
    return OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})


class _Reciter:
    """Stands where verl's client of the rollout servers stands, and says one given text after the other."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, list(texts)
        self.said: list[list[int]] = []

    async def generate(self, *_: Any, **__: Any) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        text = self._texts[len(self.said)]
        ids = [*self._tokenizer.encode(text, add_special_tokens=False), self._tokenizer.eos_token_id]
        self.said.append(ids)
        return TokenOutput(token_ids=ids, stop_reason="completed")


def call_text(spoken: str, tool: Tool) -> str:
    """How a model that speaks the format calls the tool."""
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
    return f"<{tag}>I have to look.</{tag}>" if tag else ""


def _spans(mask: Sequence[int]) -> list[tuple[int, int]]:
    from verl_mtgrpo.integration.agent_loop import turn_spans

    return turn_spans(list(mask))


def _bare(text: str) -> str:
    return "".join(text.split()).lower()


def prompt_ids(setup: Setup, messages: list[dict[str, Any]]) -> list[int]:
    """A prompt as the agent loop builds it."""
    spoken = setup.get(f"{MULTI_TURN}.format")
    schemas = None if spoken in CUT_FORMATS else [tool.schema for tool in setup.tools if tool.schema]
    return setup.builder.build_initial_tokens(messages, tools=schemas)
