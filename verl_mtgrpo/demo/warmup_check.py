"""Measure how the demo policy behaves: sampled rollouts with real searches, without verl."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.demo.policy import ANSWER_CLOSE, ANSWER_OPEN, CALL_CLOSE, CALL_OPEN
from verl_mtgrpo.demo.world import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

_CALL = re.compile(re.escape(CALL_OPEN) + "(.*?)" + re.escape(CALL_CLOSE), re.DOTALL)
_ANSWER = re.compile(re.escape(ANSWER_OPEN) + "(.*?)" + re.escape(ANSWER_CLOSE), re.DOTALL)
_MAX_TURN_TOKENS = 24


@dataclass
class Rollout:
    """One sampled attempt at a question: the chat so far and its result."""

    question: Question
    ids: list[int]
    messages: list[dict[str, Any]]
    queries: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    answer: str | None = None
    broken_call: bool = False
    done: bool = False

    @property
    def correct(self) -> bool:
        """True if the answer is exactly the expected one."""
        return self.answer == self.question.answer

    @property
    def complete(self) -> bool:
        """True if its queries begin with one good query for each hop."""
        good = list(self.question.queries)
        return self.queries[: len(good)] == good

    @property
    def hit(self) -> bool:
        """True if the expected answer was in some result."""
        return any(self.question.answer in result for result in self.results)


def roll_out(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    search: Callable[[str], str],
    tools: list[dict[str, Any]],
    *,
    samples: int,
    seed: int,
    max_turns: int,
) -> list[Rollout]:
    """Sample ``samples`` rollouts of every question at temperature 1, of up to ``max_turns`` assistant turns.

    ``search`` turns a query into the text of its result.
    """
    import torch

    rollouts = [_start(tokenizer, question, tools) for question in questions for _ in range(samples)]
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for _ in range(max_turns):
            open_ = [rollout for rollout in rollouts if not rollout.done]
            if not open_:
                break
            for rollout, ids in zip(
                open_, generate_turns(model, tokenizer, [rollout.ids for rollout in open_]), strict=True
            ):
                _advance(rollout, ids, tokenizer, search, tools)
    return rollouts


def rates(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the policy's rates over the rollouts; a share of nothing is 0."""
    searched = [rollout for rollout in rollouts if rollout.queries]
    closed = [rollout for rollout in rollouts if not rollout.queries and not rollout.broken_call]
    single = [rollout for rollout in searched if len(rollout.question.facts) == 1]
    chained = [rollout for rollout in searched if len(rollout.question.facts) > 1]
    first_good = [rollout.queries[0] == rollout.question.queries[0] for rollout in searched]
    hits = [rollout for rollout in searched if rollout.hit]
    return {
        "exact_match": _share(rollout.correct for rollout in rollouts),
        "tool_rate": _share(bool(rollout.queries) for rollout in rollouts),
        "exact_match_with_tool": _share(rollout.correct for rollout in searched),
        "exact_match_closed_book": _share(rollout.correct for rollout in closed),
        "recall_of_famous": _share(rollout.correct for rollout in closed if rollout.question.famous),
        "broken_call_rate": _share(rollout.broken_call for rollout in rollouts),
        "good_first_query": _share(first_good),
        "hit_rate_with_tool": _share(rollout.hit for rollout in searched),
        "hit_rate_with_tool_single_hop": _share(rollout.hit for rollout in single),
        "complete_chains": _share(rollout.complete for rollout in chained),
        "read_right_after_hit": _share(rollout.correct for rollout in hits),
        "answered": _share(rollout.answer is not None for rollout in rollouts),
    }


def _share(flags: Any) -> float:
    values = [bool(flag) for flag in flags]
    return round(sum(values) / len(values), 4) if values else 0.0


def _start(tokenizer: PreTrainedTokenizerBase, question: Question, tools: list[dict[str, Any]]) -> Rollout:
    messages = [{"role": "user", "content": question.text}]
    return Rollout(question, _render(tokenizer, messages, tools), messages)


def _render(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def generate_turns(model: Any, tokenizer: Any, chats: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sample the next assistant turn of each chat at temperature 1, up to and including the end token."""
    import torch

    width = max(len(chat) for chat in chats)
    ids = torch.full((len(chats), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, chat in enumerate(chats):
        ids[row, width - len(chat) :] = torch.tensor(chat)
        mask[row, width - len(chat) :] = 1
    model.eval()
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=_MAX_TURN_TOKENS,
    )
    turns = output[:, width:].tolist()
    end = tokenizer.eos_token_id
    return [turn[: turn.index(end) + 1] if end in turn else turn for turn in turns]


def _advance(
    rollout: Rollout,
    ids: list[int],
    tokenizer: Any,
    search: Callable[[str], str],
    tools: list[dict[str, Any]],
) -> None:
    """Add one assistant turn to the chat: carry out its search, or record its answer."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    call = _CALL.search(text)
    if call is None:
        found = _ANSWER.findall(text)
        rollout.answer = found[-1].strip() if found else None
        rollout.done = True
        return
    query = _query_of(call.group(1))
    if query is None:
        rollout.broken_call = rollout.done = True
        return
    result = search(query)
    rollout.queries.append(query)
    rollout.results.append(result)
    rollout.messages += [{"role": "assistant", "content": text}, {"role": "tool", "content": result}]
    rollout.ids = _render(tokenizer, rollout.messages, tools)


def _query_of(call: str) -> str | None:
    """Return the query in a call's JSON; None if the JSON is damaged or calls another tool."""
    try:
        parsed = json.loads(call)
        return str(parsed["arguments"]["query"]) if parsed["name"] == "search" else None
    except (ValueError, KeyError, TypeError):
        return None
