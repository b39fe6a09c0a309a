"""Make the demo's policy for FrozenLake from a seed: it can read the board, and walks clumsily."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.folder import Clock, make_once, versions, warmup_bar
from verl_mtgrpo.demo.warmup_demos import RENAME_NONE, Demonstration
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import World
from verl_mtgrpo.environments.episode import seed_of
from verl_mtgrpo.version import __version__

# Raise it when equal settings no longer give an equal policy.
RECIPE = 1
DATA_SOURCE = "frozen_lake"
PROMPT = "Cross the frozen lake to the goal. Say left, down, right or up."
NONSENSE = "jump"
"""What the policy sometimes says instead of a direction."""


@dataclass(frozen=True)
class LakeSettings:
    """The boards of the demo, and how its policy walks at the start.

    Attributes:
        size: Rows and columns of a board.
        train_rows: Boards to train on.
        val_rows: Other boards, for validation.
        careful: Probability of a step towards the goal in the drills, which teach reading; other steps are random.
        clumsy: The same in the habits, which the policy begins reinforcement learning with.
        nonsense: Probability of a turn without a direction in the habits.
        turns: Longest demonstration.
        warmup: Length and pace of the warm-up.
    """

    size: int = 4
    train_rows: int = 1024
    val_rows: int = 64
    careful: float = 0.9
    clumsy: float = 0.35
    nonsense: float = 0.1
    turns: int = 5
    warmup: WarmupSettings = field(default_factory=lambda: WarmupSettings(drill_steps=250, habit_steps=80))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that stored assets are compared by."""
        return {**asdict(self), "warmup": self.warmup.to_dict()}


@dataclass(frozen=True)
class LakeAssets:
    """The paths of the parts; nothing is searched, so there is no index.

    Attributes:
        policy: Hugging Face folder: model, tokenizer, chat template.
        train_file: Training boards for verl (parquet).
        val_file: Validation boards.
        manifest: Seed, settings, versions, seconds per stage, and how the policy walks at the start.
    """

    policy: Path
    train_file: Path
    val_file: Path
    manifest: dict[str, Any]
    index: None = None
    tool_config: None = None


def prepare_lake(out: Path, *, seed: int, progress: bool, settings: LakeSettings, turns: int) -> LakeAssets:
    """Make the assets in the folder ``out``, or return the existing ones.

    Args:
        out: The folder.
        seed: Seed of boards and policy.
        progress: True to show a bar.
        settings: The boards and the policy's habits.
        turns: Longest episode, for the check of how the policy walks.

    Raises:
        ConfigError: gymnasium is not installed.
        DataError: ``out`` holds something else.
    """
    key = {"recipe": RECIPE, "version": __version__, "seed": seed, "lake": settings.to_dict(), "turns": turns}
    manifest = make_once(out, key, lambda draft: _make(draft, seed, settings, turns, progress))
    return LakeAssets(out / "policy", out / "train.parquet", out / "val.parquet", manifest)


def _make(folder: Path, seed: int, settings: LakeSettings, turns: int, progress: bool) -> dict[str, Any]:
    from verl_mtgrpo.demo.policy import build_model, build_tokenizer, save_policy
    from verl_mtgrpo.demo.warmup import SampleMaker, torch_threads, warm_up

    clock, walker = Clock(), Walker(settings, random.Random(seed))
    rows = {split: list(_rows(split, count, seed)) for split, count in _splits(settings).items()}
    for split, made in rows.items():
        write_parquet(made, folder / f"{split}.parquet")
    clock.lap("boards")
    spoken = [str(message["content"]) for _ in range(50) for message in walker.drill().messages]
    tokenizer = build_tokenizer([*spoken, NONSENSE], [])
    model = build_model(tokenizer, seed=seed)
    # Two threads on cores that others use too wait for each other.
    with torch_threads(1), warmup_bar(settings.warmup.steps, progress) as advance:
        warm_up(
            model,
            SampleMaker(tokenizer, World((), (), (), ()), []),
            drill=walker.drill,
            habit=walker.habit,
            settings=settings.warmup,
            seed=seed,
            on_step=advance,
        )
        clock.lap("warm-up")
        save_policy(model, tokenizer, folder / "policy")
        start = walks(model, tokenizer, rows["val"], settings, turns=turns, seed=seed)
    clock.lap("check")
    return {"made_with": versions("gymnasium"), "seconds": clock.laps, "start": start}


def _splits(settings: LakeSettings) -> dict[str, int]:
    return {"train": settings.train_rows, "val": settings.val_rows}


def _rows(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        row = make_row(
            PROMPT, ["goal"], index=number, split=split, id=f"{split}-{number}", data_source=DATA_SOURCE,
            system_prompt=None, world=seed,
        )  # fmt: skip
        yield row


class Walker:
    """Demonstrates walks over random boards: careful ones and clumsy ones."""

    def __init__(self, settings: LakeSettings, rng: random.Random) -> None:
        self.settings, self.rng = settings, rng

    def drill(self) -> Demonstration:
        """Return a careful walk."""
        return self._walk(self.settings.careful, 0.0)

    def habit(self) -> Demonstration:
        """Return a clumsy walk."""
        return self._walk(self.settings.clumsy, self.settings.nonsense)

    def _walk(self, sense: float, nonsense: float) -> Demonstration:
        from verl_mtgrpo.environments.frozen_lake import WORDS, FrozenLake, moved

        lake = FrozenLake(self.settings.size)
        answer = lake.reset({"seed": self.rng.randrange(2**31)})
        messages = [{"role": "user", "content": f"{PROMPT}\n\n{answer.text}"}]
        for _ in range(self.settings.turns):
            nearer = [w for w in WORDS if lake.distance.get(moved(lake.board, lake.at, w), 99) < lake.distance[lake.at]]
            word = self.rng.choice(nearer if self.rng.random() < sense else WORDS)
            word = NONSENSE if self.rng.random() < nonsense else word
            messages.append({"role": "assistant", "content": word})
            answer = lake.step(word)
            if answer.done:
                break
            messages.append({"role": "user", "content": answer.text})
        lake.close()
        return Demonstration(tuple(messages), RENAME_NONE)


def walks(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], settings: LakeSettings, *, turns: int, seed: int
) -> dict[str, float]:
    """Play every row once, without verl, and return how it went: goals, turns and rewards per episode."""
    import torch

    from verl_mtgrpo.demo.warmup_check import generate_turns
    from verl_mtgrpo.environments.frozen_lake import FrozenLake

    lakes = [FrozenLake(settings.size) for _ in rows]
    seeds = [seed_of({**row, "raw_prompt": row["prompt"]}, 0) for row in rows]
    firsts = [lake.reset({"seed": one}) for lake, one in zip(lakes, seeds, strict=True)]
    chats = [[{"role": "user", "content": f"{PROMPT}\n\n{first.text}"}] for first in firsts]
    total, taken, going = [0.0] * len(rows), [0] * len(rows), list(range(len(rows)))
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for _ in range(turns):
            ids = [_rendered(tokenizer, chats[number]) for number in going]
            written = generate_turns(model, tokenizer, ids) if going else []
            over = []
            for number, turn in zip(going, written, strict=True):
                text = tokenizer.decode(turn, skip_special_tokens=True)
                answer = lakes[number].step(text)
                total[number] += answer.reward
                taken[number] += 1
                chats[number] += [{"role": "assistant", "content": text}, {"role": "user", "content": answer.text}]
                over += [number] if answer.done else []
            going = [number for number in going if number not in over]
    goals = [lake.distance.get(lake.at) == 0 for lake in lakes]
    count = len(rows)
    return {
        "goal": round(sum(goals) / count, 4),
        "return": round(sum(total) / count, 4),
        "turns": round(sum(taken) / count, 4),
    }


def _rendered(tokenizer: Any, chat: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)
