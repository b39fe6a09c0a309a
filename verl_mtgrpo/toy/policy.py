"""Make a tiny policy that calls given tools, and the questions that it trains on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from verl_mtgrpo.atomic import atomic_folder, lock_beside
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy
from verl_mtgrpo.demo.toy import DATA_SOURCE
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.toy.arguments import sample_arguments
from verl_mtgrpo.toy.caller import Caller, question_of_row

QUESTIONS = 8
"""Different questions that a policy of a million parameters is shown; more would take it longer to tell apart."""
_MOST_TOKENS = 1500
"""Tokens of a prompt; the policy reads 2,048 in all."""
_DRILL_STEPS = 240
_MANIFEST = "toy.json"
_VERSION = 3


@dataclass(frozen=True)
class Toy:
    """A tiny policy and its questions.

    Attributes:
        folder: Holds ``policy``, ``train.parquet`` and ``val.parquet``.
        prompt_tokens: The longest prompt, in its tokens.
    """

    folder: Path
    prompt_tokens: int


def make_caller(
    folder: Path,
    schemas: Sequence[Mapping[str, Any]],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    calls: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    repeated: int = 64,
    prompt_key: str = "prompt",
    finish: str = "",
) -> Toy:
    """Make a policy that calls these tools, and its questions; an existing folder of the same is kept.

    Args:
        folder: The folder to make; it appears under its name only when it is complete.
        schemas: The tools as OpenAI's API describes them.
        rows: Rows of the user's own questions, as verl reads them; empty for made-up ones.
        calls: Arguments of good calls, by the tool's name; without them they are made up from the schemas.
        repeated: Rows of the training file; the few questions are repeated.
        prompt_key: The column of the prompt.
        finish: A word that ends a conversation of roles, which the policy writes after half of its answers.
    """
    chosen = _shortest(rows, prompt_key) if rows else made_up_rows(schemas)
    asked: dict[str, Any] = {
        "schemas": schemas,
        "rows": chosen,
        "calls": calls or {},
        "repeated": repeated,
        "finish": finish,
    }
    known = {"version": _VERSION, "prompt_key": prompt_key, **asked}
    key = json.dumps(known, default=str, sort_keys=True)
    manifest = folder / _MANIFEST
    with lock_beside(folder):
        if not manifest.exists() or json.loads(manifest.read_text(encoding="utf-8"))["key"] != key:
            with atomic_folder(folder) as draft:
                longest = _make(draft, prompt_key=prompt_key, **asked)
                said = json.dumps({"key": key, "prompt_tokens": longest})
                (draft / _MANIFEST).write_text(said, encoding="utf-8")
    return Toy(folder, json.loads(manifest.read_text(encoding="utf-8"))["prompt_tokens"])


def made_up_rows(schemas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return questions made from what the tools say of themselves, for a try without the user's own."""
    import random

    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for n in range(QUESTIONS):
        function = schemas[n % len(schemas)]["function"] if schemas else {"description": "Say a number"}
        about = str(function.get("description") or function.get("name")).strip().splitlines()[0].rstrip(".")
        given = sample_arguments({"function": function}, about.split(), rng)
        answer = str(next(iter(given.values()), n))
        question = f"{about}: {answer}. Question {n}"
        about_row: Any = {"split": "train", "data_source": DATA_SOURCE, "system_prompt": None}
        rows.append(make_row(question, [answer], index=n, id=str(n), **about_row))
    return rows


def _shortest(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the rows with the shortest prompts, which a tiny policy can read."""
    sized = [(sum(len(str(one.get("content"))) for one in question_of_row(row, key).messages), row) for row in rows]
    return [dict(row) for _, row in sorted(sized, key=lambda one: one[0])[:QUESTIONS]]


def _make(
    folder: Path,
    *,
    schemas: Sequence[Mapping[str, Any]],
    rows: Sequence[dict[str, Any]],
    calls: Mapping[str, Sequence[Mapping[str, Any]]],
    repeated: int,
    finish: str,
    prompt_key: str,
) -> int:
    from verl_mtgrpo.demo.folder import warmup_bar
    from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up

    questions = [question_of_row(row, prompt_key) for row in rows]
    new_caller = partial(Caller, schemas, questions, calls=calls, finish=finish)
    caller = new_caller()
    shown = [message["content"] for _ in range(200) for message in caller.drill().messages]
    names = ", ".join(str(one["function"]["name"]) for one in schemas)
    tokenizer = build_tokenizer([*map(str, shown), f"Tools: {names}"], [], vocab_size=1500)
    tools: list[Any] = [dict(one) for one in schemas]
    lengths = [
        len(tokenizer.encode(str(tokenizer.apply_chat_template([*one.messages], tools=tools or None, tokenize=False))))
        for one in questions
    ]
    if max(lengths) > _MOST_TOKENS:
        raise DataError(
            f"the shortest prompts have up to {max(lengths)} tokens of the tiny policy, which reads {_MOST_TOKENS}",
            fix="name a file with shorter prompts (data.train_files)",
        )
    copies = [rows[n % len(rows)] for n in range(max(repeated, len(rows)))]
    write_parquet(copies, folder / "train.parquet")
    write_parquet(rows, folder / "val.parquet")
    model = build_model(tokenizer, seed=0)
    settings = WarmupSettings(drill_steps=_DRILL_STEPS, habit_steps=0, warmup_steps=20, batch_size=8)
    # One thread: two on a core that is shared with others wait for each other.
    with warmup_bar(settings.steps, progress=True) as advance, torch_threads(1):
        maker = SampleMaker(tokenizer, World((), (), (), ()), tools)
        drill = new_caller().drill
        warm_up(model, maker, drill=drill, settings=settings, seed=0, on_step=advance, sorted_together=1)
    save_policy(model, tokenizer, folder / "policy")
    return max(lengths) + 8  # the generation prompt
