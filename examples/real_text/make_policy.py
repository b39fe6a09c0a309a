"""Make a tiny policy for real questions, so that the trainer can be tried on real text without a GPU.

It is a model of about a million parameters with a tokenizer learned from the questions and passages. Drills teach it to
repeat a given text and to search with the question as the query. Then it learns bad habits for reinforcement learning
to correct: it searches in one of four rollouts, and most of those searches are for the question's first word only.

    python make_policy.py --questions data/train.parquet --index index --out policy
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy, search_call
from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up
from verl_mtgrpo.demo.warmup_demos import RENAME_NONE, Demonstration, Habits
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World
from verl_mtgrpo.retrieval import BM25Index, render_passages
from verl_mtgrpo.rewards.answers import accepted_answers, mentions

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
NO_NAMES = World((), (), (), ())
REPEAT = 0.7  # share of drills that repeat random words, which can only be copied and not memorised
REHEARSE = 0.3  # share of drills among the habits, without which copying is lost again


class RealDemonstrator:
    """Writes demonstrations for real questions; ``k``, ``template`` and ``max_chars`` as in the tool YAML."""

    def __init__(self, questions: list[str], index: BM25Index, rng: random.Random) -> None:
        self.questions, self.index, self.rng = questions, index, rng
        self.words = sorted({word for question in questions for word in question.split()})

    def drill(self) -> Demonstration:
        """Repeat some words as a query, or search for the question and answer."""
        if self.rng.random() < REPEAT:
            words = " ".join(self.rng.choice(self.words) for _ in range(self.rng.randint(3, 14)))
            return Demonstration((user(words), assistant(search_call(query_for(words)))), RENAME_NONE)
        question = self.rng.choice(self.questions)
        return self._searched(question, question)

    def habit(self, habits: Habits) -> Demonstration:
        """Give up in most cases, and otherwise search mostly for the question's first word only."""
        if self.rng.random() < REHEARSE:
            return self.drill()
        question = self.rng.choice(self.questions)
        if self.rng.random() < habits.search:
            vague = self.rng.random() < habits.vague_query
            return self._searched(question, question.split()[0] if vague else question)
        return Demonstration((user(question), assistant("<answer>unknown</answer>")), RENAME_NONE)

    def _searched(self, question: str, about: str) -> Demonstration:
        result = self.search(about)
        answer = result.split(":")[0]  # the passage's title: a policy this small cannot read real text
        turns = (user(question), assistant(search_call(query_for(about))), {"role": "tool", "content": result})
        return Demonstration((*turns, assistant(f"<answer>{answer}</answer>")), RENAME_NONE)

    def search(self, question: str) -> str:
        """Return the answer of the tool with this folder's ``search_tool.yaml``."""
        passages = self.index.search([query_for(question)], 1)[0]
        return render_passages(passages, template="{title}: {text}", max_chars=400)


def query_for(text: str) -> str:
    """Return the text as a query, without characters that need escaping in JSON."""
    return text.replace('"', "").replace("\\", "")


def user(text: str) -> dict[str, str]:
    """Return a user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """Return a message of the policy."""
    return {"role": "assistant", "content": text}


def main() -> None:
    """Read questions and index, warm the policy up, save it as a Hugging Face folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True, help="train.parquet of `mtgrpo data`")
    parser.add_argument("--index", type=Path, required=True, help="folder of `mtgrpo index`")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drill-steps", type=int, default=600)
    parser.add_argument("--habit-steps", type=int, default=60)
    args = parser.parse_args()

    rows = pd.read_parquet(args.questions)
    questions = [prompt[-1]["content"] for prompt in rows["prompt"]]
    demonstrator = RealDemonstrator(questions, BM25Index.open(args.index), random.Random(args.seed))
    results = [demonstrator.search(question) for question in questions]
    held = [
        mentions(result, accepted_answers(model["ground_truth"]))
        for result, model in zip(results, rows["reward_model"], strict=True)
    ]
    print(f"searching for the whole question, the passage shown holds an answer for {sum(held) / len(held):.0%}")
    texts = [*questions, *results]
    tokenizer = build_tokenizer(texts, [], vocab_size=3000)
    model = build_model(tokenizer, seed=args.seed, start="phrases")
    settings = WarmupSettings(drill_steps=args.drill_steps, habit_steps=args.habit_steps)
    habits = Habits(search=0.45, vague_query=0.6)
    with torch_threads(), tqdm(total=settings.steps, desc="warming up the policy", unit=" steps") as bar:
        maker = SampleMaker(tokenizer, NO_NAMES, TOOLS)
        warm_up(
            model,
            maker,
            drill=demonstrator.drill,
            habit=lambda: demonstrator.habit(habits),
            settings=settings,
            seed=args.seed,
            on_step=lambda: bar.update(),
        )
    save_policy(model, tokenizer, args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
