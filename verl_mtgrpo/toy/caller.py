"""Demonstrations for a tiny policy that calls any tools, with the bad habits of a small model."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.demo.policy import CALL_CLOSE, CALL_OPEN
from verl_mtgrpo.demo.warmup_demos import RENAME_NONE, Demonstration
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.rewards.answers import accepted_answers
from verl_mtgrpo.toy.arguments import sample_arguments

Message = dict[str, Any]
NO_SUCH_TOOL = "no_such_tool"
_RESULT_WORDS = (
    "ok",
    "Error:",
    "1",
    "42",
    "3.5",
    "[]",
    '{"rows": 2}',
    "None",
    "found",
    "nothing",
    "the",
    "value",
    "is",
)
_LONGEST_ANSWER = 60
"""Characters; a ground truth that is longer (a program, a list of tests) is never written as an answer."""


@dataclass(frozen=True)
class Habits:
    """How the policy behaves; each number is a probability.

    Attributes:
        no_call: It answers without calling a tool.
        broken_json: A call has damaged JSON, which ends the rollout.
        unknown_tool: A call names a tool that does not exist.
        missing_argument: A call leaves out a required argument.
        second_call: After a result it calls once more.
        wrong_answer: It answers with the answer to another question.
        bare_answer: It answers without the marks that a reward function may look for.
    """

    no_call: float = 0.2
    broken_json: float = 0.08
    unknown_tool: float = 0.08
    missing_argument: float = 0.1
    second_call: float = 0.3
    wrong_answer: float = 0.5
    bare_answer: float = 0.05


@dataclass(frozen=True)
class Question:
    """A prompt as chat messages, and the short answer that its ground truth holds, empty if there is none."""

    messages: tuple[Message, ...]
    answer: str

    @property
    def text(self) -> str:
        """Return the last user message."""
        said = [str(one["content"]) for one in self.messages if one.get("role") == "user"]
        return said[-1] if said else ""


class Caller:
    """Writes demonstrations.

    Args:
        schemas: The tools as OpenAI's API describes them; without any, every demonstration is an answer.
        questions: The prompts, at least one.
        calls: Calls by name that are better than made-up ones, each a mapping of arguments.
        habits: How often what goes wrong.
        finish: A word that ends a conversation of roles; it follows half of the answers. Empty: none.
        seed: Seed of all choices.
    """

    def __init__(
        self,
        schemas: Sequence[Mapping[str, Any]],
        questions: Sequence[Question],
        *,
        calls: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        habits: Habits | None = None,
        finish: str = "",
        seed: int = 0,
    ) -> None:
        self.schemas = {str(one["function"]["name"]): one for one in schemas}
        self.questions, self.calls = tuple(questions), calls or {}
        self.habits = habits or Habits()
        self.finish = finish
        self.rng = random.Random(seed)

    def drill(self) -> Demonstration:
        """Return one demonstration."""
        question = self.rng.choice(self.questions)
        messages: list[Message] = [*question.messages]
        calls = 0 if not self.schemas or self._happens(self.habits.no_call) else 1
        calls += calls and self._happens(self.habits.second_call)
        for _ in range(calls):
            text, goes_on = self._call(question)
            messages.append(_assistant(text))
            if not goes_on:
                return Demonstration(tuple(messages), RENAME_NONE)
            messages.append({"role": "tool", "content": self._result()})
        return Demonstration((*messages, _assistant(self._answer(question))), RENAME_NONE)

    def _call(self, question: Question) -> tuple[str, bool]:
        """Return a turn with a call, and whether the rollout goes on after it."""
        name = self.rng.choice(list(self.schemas))
        schema, known = self.schemas[name], self.calls.get(name)
        arguments = dict(self.rng.choice(known) if known else sample_arguments(schema, question.text.split(), self.rng))
        kind, habits = self.rng.random(), self.habits
        if kind < habits.broken_json:
            return call_text(name, arguments).replace(f"}}{CALL_CLOSE}", CALL_CLOSE), False
        if kind < habits.broken_json + habits.unknown_tool:
            return call_text(NO_SUCH_TOOL, arguments), True
        needed = (schema["function"].get("parameters") or {}).get("required") or []
        left_out = [one for one in needed if one in arguments]
        if left_out and kind < habits.broken_json + habits.unknown_tool + habits.missing_argument:
            del arguments[self.rng.choice(left_out)]
        return call_text(name, arguments), True

    def _result(self) -> str:
        """Return a made-up result: what the policy has to learn is only that an answer follows."""
        return " ".join(self.rng.choices(_RESULT_WORDS, k=self.rng.randint(1, 8)))

    def _answer(self, question: Question) -> str:
        known = [one.answer for one in self.questions if one.answer]
        wrong = self._happens(self.habits.wrong_answer) or not question.answer
        answer = self.rng.choice(known or ["nothing"]) if wrong else question.answer
        said = answer if self._happens(self.habits.bare_answer) else answer_text(question, answer)
        return f"{said} {self.finish}" if self.finish and self._happens(0.5) else said

    def _happens(self, probability: float) -> bool:
        return self.rng.random() < probability


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the text of a call in verl's format hermes."""
    said = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"{CALL_OPEN}{said}{CALL_CLOSE}"


def answer_text(question: Question, answer: str) -> str:
    """Return an answer with the marks that the prompt asks for, so that the usual reward functions find it."""
    asked = " ".join(str(one.get("content")) for one in question.messages)
    marks = {"boxed": f"\\boxed{{{answer}}}", "####": f"#### {answer}"}
    said = [text for mark, text in marks.items() if mark in asked]
    if "<answer>" in asked or not said:
        said.append(f"<answer>{answer}</answer>")
    return " ".join(said)


def question_of_row(row: Mapping[str, Any], key: str = "prompt") -> Question:
    """Return a verl row's prompt and short answer.

    Raises:
        DataError: The prompt is not a list of messages with text.
    """
    prompt: Any = row.get(key)
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        raise DataError(f"the column {key} is {prompt!r:.80}", expected="a list of messages, {role, content}")
    try:
        answer = accepted_answers((row.get("reward_model") or {}).get("ground_truth"))[0]
    except DataError:
        answer = str((row.get("reward_model") or {}).get("ground_truth") or "")
    return Question(tuple(dict(one) for one in prompt), answer if len(answer) <= _LONGEST_ANSWER else "")


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
