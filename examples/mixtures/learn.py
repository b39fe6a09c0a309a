"""Learn a router from outcomes, in this process: rollouts by our agent loop and the run's search tool, no trainer.

verl takes over a minute to start, and a router learns from a few hundred rollouts. Nothing else is left out here: the
loop, the tool, the decider and the servers are those of the validation that follows.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.tools.tool_registry import initialize_tools_from_config
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.doctor.compose import compose_config, parse
from verl_mtgrpo.integration.decide import ASKS
from verl_mtgrpo.integration.rollout.decide_loop import DecideAgentLoop
from verl_mtgrpo.own_code import load_own
from verl_mtgrpo.rewards import TRANSCRIPT, Transcript, paper_v1

MIXTURE = Path(__file__).resolve().with_name("mixture.py")


@dataclass(frozen=True)
class Played:
    """A rollout: its question, its turns, who was asked for them, and whether the answer is right."""

    question: int
    transcript: Transcript
    asked: tuple[int, ...]
    right: float


class NoPolicy:
    """Takes the place of verl's client of rollout servers: the decider has all turns written by its own."""

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise RuntimeError("a turn was asked of the run's own policy, which is not served here")


class Player:
    """Plays rollouts of the decider that a command line of verl names.

    Args:
        argv: The command line.
        log: The file that the router writes whom it asked into.
    """

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        whole: Any = OmegaConf.to_container(compose_config(parse(argv)), resolve=True)
        ours = {part: {"turn": whole[part]["turn"]} for part in ("reward", "trainer")}
        model = whole["actor_rollout_ref"]
        kept = {"rollout": model["rollout"], "model": {"path": model["model"]["path"]}}
        # Only what a loop reads: it is read again for each rollout.
        self.config: Any = OmegaConf.create({**ours, "actor_rollout_ref": kept, "data": whole["data"]})
        self.tokenizer = AutoTokenizer.from_pretrained(kept["model"]["path"])
        self.tools = initialize_tools_from_config(kept["rollout"]["multi_turn"]["tool_config_path"])
        self.log = log

    async def play(
        self, rows: Sequence[Mapping[str, Any]], several: int, step: int, options: Mapping[str, Any]
    ) -> list[Played]:
        """Return ``several`` rollouts of each question.

        Args:
            rows: Questions, as in verl's files.
            several: n.
            step: Part of the seed of the draws.
            options: Of the router.
        """
        self.log.unlink(missing_ok=True)
        self.config.trainer.turn.decide.options = {**options, "log": str(self.log)}
        names = [(row, again) for row in range(len(rows)) for again in range(several)]
        outputs = await asyncio.gather(*(self._one(rows[row], step, row, again) for row, again in names))
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        asked = {(line["rollout"], line["turn"]): line["server"] for line in lines}
        played = []
        for (row, again), output in zip(names, outputs, strict=True):
            transcript: Transcript = output.extra_fields[TRANSCRIPT]
            whom = tuple(asked[f"{step} {row} {again}", turn] for turn in range(len(transcript.turns)))
            rewards = paper_v1(transcript, rows[row]["reward_model"]["ground_truth"])
            played.append(Played(row, transcript, whom, float(rewards.components["outcome/em"] or 0.0)))
        return played

    async def _one(self, row: Mapping[str, Any], step: int, index: int, again: int) -> Any:
        loop = DecideAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=NoPolicy(),
            tokenizer=self.tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(self.config.data),
            hf_model_type="qwen2",
            tools=ToolListWrap(self.tools),
        )
        names = {"global_steps": step, "index": index, "session_id": again, ASKS: "validation"}
        return await loop.run({"temperature": 1.0, "logprobs": True}, raw_prompt=row["prompt"], **names)


def advantages(played: Sequence[Played], estimator: str) -> tuple[Tensor, Tensor]:
    """Return who was asked and the advantage of each turn, both ``(B, K)``; -1 and 0 where there is no such turn.

    The outcome is the only reward. To the estimator a turn is one token, and a tool's result another one.
    """
    most = max(len(one.asked) for one in played)
    chosen_BK = torch.full((len(played), most), -1)
    rewards_BT, mask_BT = torch.zeros(len(played), 2 * most), torch.zeros(len(played), 2 * most)
    for row, one in enumerate(played):
        turns = len(one.asked)
        chosen_BK[row, :turns] = torch.tensor(one.asked)
        mask_BT[row, : 2 * turns : 2] = 1
        rewards_BT[row, 2 * turns - 2] = one.right
    advantages_BT, _ = ESTIMATORS[estimator](rewards_BT, mask_BT, [one.question for one in played])
    return chosen_BK, advantages_BT[:, ::2]


def learn(
    player: Player,
    train_file: Path,
    options: Mapping[str, Any],
    *,
    turns: int,
    estimator: str,
    rounds: int,
    questions: int,
    rollouts: int,
    lr: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the rounds: the router's logits, and how many answers were right with them; the last has logits only.

    Args:
        player: Plays rollouts.
        train_file: Training questions.
        options: Of the router, but for its logits.
        turns: K, rows of the logits.
        estimator: A name of verl_mtgrpo.credit that needs rewards, mask and groups only.
        rounds: Steps of gradient ascent.
        questions: Per round.
        rollouts: Per question: the group within which advantages are computed.
        lr: Step along the mean gradient of a rollout.
        seed: Seed of the choice of questions.
    """
    gradient = load_own(f"{MIXTURE}:router_gradient", "the router", "function")
    rows, draw = pq.read_table(train_file).to_pylist(), random.Random(seed)
    logits_KJ = torch.zeros(turns, len(options["servers"]), dtype=torch.float64)
    found: list[dict[str, Any]] = []

    async def go() -> None:
        for step in range(rounds):
            given = {**options, "logits": logits_KJ.tolist()}
            played = await player.play(draw.sample(rows, questions), rollouts, step, given)
            right = sum(one.right for one in played) / len(played)
            found.append({"logits": logits_KJ.tolist(), "right": right})
            print(f"round {step}: {right:.3f} right; asked with {probabilities(logits_KJ.tolist())}", flush=True)
            chosen_BK, advantage_BK = advantages(played, estimator)
            reached = chosen_BK.shape[1]
            step_KJ = gradient(logits_KJ[:reached], chosen_BK, advantage_BK.double()) / len(played)
            logits_KJ[:reached] += lr * step_KJ
        found.append({"logits": logits_KJ.tolist()})

    asyncio.run(go())
    return found


def probabilities(logits: Sequence[Sequence[float]]) -> str:
    """Return with which probability each server is asked, turn by turn."""
    rows = torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()
    return "; ".join(" ".join(f"{one:.2f}" for one in row) for row in rows)
