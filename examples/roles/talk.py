"""Make a policy for a conversation of two roles: a planner, who may finish it, and a worker, who answers.

There is one question. The worker answers as the planner says, which is right for one plan and wrong for the other, or
asks back if there is no plan. There is nothing to find out: it shows ReMA's set-up at work within minutes.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.folder import Clock, make_once, versions, warmup_bar
from verl_mtgrpo.demo.lake import LakeAssets
from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy
from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up
from verl_mtgrpo.demo.warmup_demos import RENAME_NONE, Demonstration
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World
from verl_mtgrpo.version import __version__

RECIPE = 1
"""Raise it when equal settings no longer give an equal policy."""
QUESTION, RIGHT, WRONG = "Where is the tower?", "Oslo", "Rome"
FINISH = "[FINISH]"
PLANS = {f"Look north. {FINISH}": RIGHT, f"Look south. {FINISH}": WRONG, "Wait.": ""}
ASKS = "Which way?"
ROLES = {
    "order": "alternate",
    "rounds": 3,
    "finish": FINISH,
    "finish_role": "planner",
    "unfinished": "zero",
    "names": {"planner": {"prompt": "{question}"}, "worker": {"prompt": "{question}\n\n{planner}"}},
}
WARMUP = WarmupSettings(drill_steps=80, habit_steps=0, batch_size=8, warmup_steps=10)


class Talk:
    """Demonstrates one side of a conversation: plans at random, and a worker who mostly does what it is told."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def drill(self) -> Demonstration:
        """Return the planner's or the worker's side."""
        planner = self.rng.random() < 0.5
        messages, first = list[dict[str, Any]](), True
        while True:
            plan = self.rng.choices([*PLANS], weights=[2, 2, 1])[0]
            said = self._answer(plan)
            if planner:
                messages += [_said("user", QUESTION if first else ASKS), _said("assistant", plan)]
            else:
                heard = f"{QUESTION}\n\n{plan}" if first else plan
                messages += [_said("user", heard), _said("assistant", said)]
            if PLANS[plan] or len(messages) >= 6:
                return Demonstration(tuple(messages), RENAME_NONE)
            first = False

    def _answer(self, plan: str) -> str:
        if not PLANS[plan]:
            return ASKS
        told = PLANS[plan] if self.rng.random() < 0.9 else self.rng.choice([RIGHT, WRONG])
        return f"<answer>{told}</answer>"


def prepare(out: Path, *, seed: int) -> LakeAssets:
    """Make the assets in the folder ``out``, or return the existing ones."""
    key = {"recipe": RECIPE, "version": __version__, "seed": seed, "warmup": WARMUP.to_dict()}
    manifest = make_once(out, key, lambda draft: _make(draft, seed))
    return LakeAssets(out / "policy", out / "train.parquet", out / "val.parquet", manifest)


def _make(folder: Path, seed: int) -> dict[str, Any]:
    clock = Clock()
    for split, count in (("train", 64), ("val", 8)):
        rows = [
            make_row(QUESTION, [RIGHT], index=n, split=split, id=str(n), data_source="talk", system_prompt=None)
            for n in range(count)
        ]
        write_parquet(rows, folder / f"{split}.parquet")
    tokenizer = build_tokenizer([QUESTION, *PLANS, ASKS, RIGHT, WRONG], [])
    model = build_model(tokenizer, seed=seed)
    with torch_threads(1), warmup_bar(WARMUP.steps, True) as advance:
        maker = SampleMaker(tokenizer, World((), (), (), ()), [])
        warm_up(model, maker, drill=Talk(random.Random(seed)).drill, settings=WARMUP, seed=seed, on_step=advance)
    save_policy(model, tokenizer, folder / "policy")
    clock.lap("all")
    return {"made_with": versions(), "seconds": clock.laps}


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
