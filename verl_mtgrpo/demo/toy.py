"""Make a policy, an index and questions for short runs in any text format, in seconds.

One passage, one question, and a policy of a million parameters with two habits: half of the time it searches and reads,
half of the time it guesses, right or wrong. So groups have different rewards and both kinds of turns. It is for
tests and dry runs, which need a real policy that uses the format; there is nothing to learn in this world.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

from verl_mtgrpo.atomic import atomic_folder, lock_beside
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy, search_call
from verl_mtgrpo.demo.warmup_demos import RENAME_NONE, Demonstration
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.retrieval.bm25 import BM25Index
from verl_mtgrpo.retrieval.render import render_passages

QUESTION, QUERY = "Where is the tower?", "the tower"
RIGHT, WRONG = "Oslo", "Rome"
PASSAGE = Passage(id="1", title="Tower", text="The tower is in Oslo.")
TEMPLATE = "Doc {rank} (Title: {title}) {text}"
DATA_SOURCE = "searchR1_nq"
"""One that verl's own reward function scores, by the answer between <answer> and </answer>."""
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]

_VERSION = 2
_MANIFEST = "toy.json"


@dataclass(frozen=True)
class Speech:
    """How a toy policy writes: verl's format and agent loop, and the texts of a turn."""

    format: str
    loop: str
    call: str
    answer: str
    result: str
    raw: bool = False


_XML_CALL = '<tool>{"name": "search", "args": {"query": "' + QUERY + '"}}</tool>'
HERMES = Speech("hermes", "mtgrpo_tool_agent", search_call(QUERY), "<answer>{}</answer>", "{}")
SEARCH_R1 = Speech(
    "search_r1",
    "mtgrpo_raw_agent",
    f"<think>so</think><search>{QUERY}</search>",
    "<think>so</think><answer>{}</answer>",
    "\n\n<information>{}</information>\n\n",
    raw=True,
)
XML = Speech(
    "mtgrpo_xml",
    "mtgrpo_tool_agent",
    f"<reasoning>so</reasoning>{_XML_CALL}",
    "<reasoning>so</reasoning><answer>{}</answer>",
    "<result>{}</result>",
)
SPEECHES = {speech.format: speech for speech in (HERMES, SEARCH_R1, XML)}


class TwoHabits:
    """Demonstrates in turn: search and read, or guess, and answer right or wrong in either case."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech
        self._habits = cycle([(True, RIGHT), (False, RIGHT), (True, WRONG), (False, WRONG)])

    def drill(self) -> Demonstration:
        """Return one demonstration."""
        speech = self.speech
        searches, said = next(self._habits)
        question = {"role": "user", "content": QUESTION}
        answer = speech.answer.format(said)
        if not searches:
            return Demonstration((question, {"role": "assistant", "content": answer}), RENAME_NONE)
        result = speech.result.format(render_passages([PASSAGE], template=TEMPLATE))
        if speech.raw:
            whole = {"role": "assistant", "content": speech.call + result + answer}
            return Demonstration((question, whole), RENAME_NONE)
        call, last = ({"role": "assistant", "content": text} for text in (speech.call, answer))
        return Demonstration((question, call, {"role": "tool", "content": result}, last), RENAME_NONE)


def make_toy(folder: Path, speech: Speech, *, questions: int = 8) -> Path:
    """Make ``policy``, ``index``, ``train.parquet`` and ``val.parquet`` in ``folder``, and return it.

    An existing folder with the same settings is kept. The folder appears under its name only when it is complete.

    Args:
        folder: The folder to make.
        speech: How the policy writes.
        questions: Rows for training; validation has half of them.
    """
    folder, key = Path(folder), json.dumps({"version": _VERSION, "questions": questions, **asdict(speech)})
    manifest = folder / _MANIFEST
    with lock_beside(folder):
        if not manifest.exists() or manifest.read_text(encoding="utf-8") != key:
            with atomic_folder(folder) as draft:
                _make(draft, speech, questions)
                (draft / _MANIFEST).write_text(key, encoding="utf-8")
    return folder


def _make(folder: Path, speech: Speech, questions: int) -> None:
    from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up

    BM25Index.build([PASSAGE], folder / "index", source="toy")
    rows = [
        make_row(QUESTION, [RIGHT], index=n, split="train", id=str(n), data_source=DATA_SOURCE, system_prompt=None)
        for n in range(questions)
    ]
    write_parquet(rows, folder / "train.parquet")
    write_parquet(rows[: max(1, questions // 2)], folder / "val.parquet")
    spoken = [speech.call, speech.answer, speech.result]
    tokenizer = build_tokenizer([QUESTION, QUERY, PASSAGE.text, PASSAGE.title, TEMPLATE, WRONG, *spoken], [])
    model = build_model(tokenizer, seed=0)
    settings = WarmupSettings(drill_steps=80, habit_steps=0, warmup_steps=10)
    with torch_threads(1):  # two threads on a core shared with others wait for each other
        maker = SampleMaker(tokenizer, World((), (), (), ()), TOOLS)
        warm_up(model, maker, drill=TwoHabits(speech).drill, settings=settings, seed=0, sorted_together=1)
    save_policy(model, tokenizer, folder / "policy")
