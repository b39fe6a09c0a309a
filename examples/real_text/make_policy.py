"""Make a tiny policy for real questions, so that the trainer can be tried on real text without a GPU.

It is a model of about a million parameters with a tokenizer learned from the questions and passages. Drills teach it
to repeat a text it was given and to search with the question as the query; then habits that reinforcement learning has
to correct: it searches in one of four rollouts, and three of four of those searches are for another question.

    python make_policy.py --questions data/train.parquet --index index --out policy
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from verl_mtgrpo.data.policy import build_model, build_tokenizer, save_policy, search_call
from verl_mtgrpo.data.warmup import SampleMaker, torch_threads, warm_up
from verl_mtgrpo.data.warmup_demos import RENAME_NONE, Demonstration, Habits
from verl_mtgrpo.data.warmup_settings import WarmupSettings
from verl_mtgrpo.data.world import World
from verl_mtgrpo.retrieval import BM25Index, render_passages

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
NO_NAMES = World((), (), (), ())
REPEAT = 0.7  # share of drills that repeat words without sense: nothing to memorise, copying is the only way


class RealDemonstrator:
    """Writes demonstrations for real questions; ``k``, ``template`` and ``max_chars`` as in the tool YAML."""

    def __init__(self, questions: list[tuple[str, list[str]]], index: BM25Index, rng: random.Random) -> None:
        self.questions, self.index, self.rng = questions, index, rng
        self.words = sorted({word for question, _ in questions for word in question.split()})

    def drill(self) -> Demonstration:
        """Repeat some words as a query, or search for the question and answer."""
        if self.rng.random() < REPEAT:
            words = " ".join(self.rng.choice(self.words) for _ in range(self.rng.randint(3, 14)))
            return Demonstration((user(words), assistant(search_call(query_for(words)))), RENAME_NONE)
        question, answers = self.rng.choice(self.questions)
        return self._searched(question, question, answers)

    def habit(self, habits: Habits) -> Demonstration:
        """Mostly guess; if it searches, mostly for something else."""
        question, answers = self.rng.choice(self.questions)
        if self.rng.random() < habits.search:
            about = self.rng.choice(self.questions)[0] if self.rng.random() < habits.wrong_query else question
            return self._searched(question, about, answers)
        guess = self.rng.choice(self.rng.choice(self.questions)[1])
        return Demonstration((user(question), assistant(f"<answer>{guess}</answer>")), RENAME_NONE)

    def _searched(self, question: str, about: str, answers: list[str]) -> Demonstration:
        result = self.search(about)
        answer = answers[0] if answers[0] in result else " ".join(result.split()[:3])
        turns = (user(question), assistant(search_call(query_for(about))), {"role": "tool", "content": result})
        return Demonstration((*turns, assistant(f"<answer>{answer}</answer>")), RENAME_NONE)

    def search(self, question: str) -> str:
        """What the tool answers with ``search_tool.yaml`` of this folder."""
        passages = self.index.search([query_for(question)], 1)[0]
        return render_passages(passages, template="{title}: {text}", max_chars=400)


def query_for(text: str) -> str:
    """The text as a query: as it is, without what would need escaping in JSON."""
    return text.replace('"', "").replace("\\", "")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def main() -> None:
    """Read questions and index, warm the policy up, save it as a Hugging Face folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True, help="train.parquet of `mtgrpo data`")
    parser.add_argument("--index", type=Path, required=True, help="folder of `mtgrpo index`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drill-steps", type=int, default=600)
    parser.add_argument("--habit-steps", type=int, default=80)
    args = parser.parse_args()

    rows = pd.read_parquet(args.questions)
    truths = [list(model["ground_truth"]["target"]) for model in rows["reward_model"]]
    questions = [(prompt[-1]["content"], answers) for prompt, answers in zip(rows["prompt"], truths, strict=True)]
    demonstrator = RealDemonstrator(questions, BM25Index.open(args.index), random.Random(args.seed))
    texts = [text for question, _ in questions for text in (question, demonstrator.search(question))]
    tokenizer = build_tokenizer(texts, [], vocab_size=3000)
    model = build_model(tokenizer, seed=args.seed, start="phrases")
    settings = WarmupSettings(drill_steps=args.drill_steps, habit_steps=args.habit_steps)
    habits = Habits(search=0.25, wrong_query=0.75)
    with torch_threads(), tqdm(total=settings.steps, desc="warming up the policy", unit=" steps") as bar:
        maker = SampleMaker(tokenizer, NO_NAMES, TOOLS)
        warm_up(
            model, maker, demonstrator, habits=habits, settings=settings, seed=args.seed, on_step=lambda: bar.update()
        )
    save_policy(model, tokenizer, args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
