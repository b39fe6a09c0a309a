"""Measure one side of step.py, verl's own parts or ours: the work of the workers, then that of the driver."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import pickle
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import step_rollouts as rollouts
import torch

GROUP, POOL, AT_ONCE, REWARDED = 8, 32, 64, 256
"""Rollouts per question, different rollouts, rollouts that a worker puts at a time, rollouts to score."""
DUMPED = 16
"""How many groups are dumped by default."""
PATIENCE = 60.0
"""Validation that would take longer (seconds) is measured on fewer questions and scaled up."""


class Side:
    """verl's parts or ours, on the same rollouts."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.ours, self.folder = args, args.side == "ours", folder
        self.found: dict[str, float] = {}
        more = [f"trainer.rollout_data_dir={folder}"]
        self.config = rollouts.configure(
            *more, *([] if self.ours else ["algorithm.adv_estimator=grpo"]), **self._sizes()
        )
        self.tokenizer = rollouts.load_tokenizer()
        self.search = rollouts.Search()
        writer = rollouts.Writer(self.tokenizer, self.search)
        script = {"turns": args.turns, "tokens": args.tokens, "passages": args.passages, "spoken": "hermes"}
        self.scripts = [writer.script(**script) for _ in range(POOL)]

    def _sizes(self) -> dict[str, Any]:
        return {"ours": self.ours, "turns": self.args.turns, "tokens": self.args.tokens}

    def note(self, **numbers: float) -> None:
        """Store numbers and print them."""
        self.found |= numbers
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        print(f"[{time.strftime('%X')}] {self.args.side}: {shown}", file=sys.stderr, flush=True)

    async def work(self) -> None:
        """Do the work of the agent loop workers and the reward workers."""
        from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

        from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop

        kind = TurnToolAgentLoop if self.ours else ToolAgentLoop
        spent, self.pool = [], []
        for script in self.scripts:
            start = time.perf_counter()
            server = rollouts.Server(script)
            self.pool.append(await rollouts.run_loop(kind, self.config, self.tokenizer, self.search, server))
            spent.append(time.perf_counter() - start)
        self.note(loop_ms=1e3 * statistics.median(spent))
        await self._score()
        self._count_bytes()
        start = time.perf_counter()
        for first in range(0, self.args.rollouts, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, self.args.rollouts))
            outputs = [self._copy(self.picked[n]) for n in numbers]
            puts = [
                self.worker._agent_loop_postprocess(output, False, **self._row(n))
                for n, output in zip(numbers, outputs, strict=True)
            ]
            await asyncio.gather(*puts)
        self.note(post_ms=1e3 * (time.perf_counter() - start) / self.args.rollouts)

    async def _score(self) -> None:
        from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
        from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
        from verl.utils.reward_score import default_compute_score

        kind, score = ("mtgrpo", None) if self.ours else ("naive", default_compute_score)
        manager = get_reward_manager_cls(kind)(self.config, self.tokenizer, compute_score=score)
        self.worker = object.__new__(AgentLoopWorkerTQ.__ray_metadata__.modified_class)
        self.worker.processor, self.worker.distillation_enabled = None, False
        reward_worker = RewardWorker(manager)
        self.worker.reward_loop_worker_handles = [reward_worker]
        self.scored: list[dict[str, Any]] = []
        with contextlib.redirect_stdout(None):  # verl's scores print now and then
            for n in range(max(POOL, min(REWARDED, self.args.rollouts))):
                output = self._copy(n % POOL)
                await self.worker._compute_score([output], kwargs=self._row(n))
                self.scored.append({"score": output.reward_score, **output.extra_fields})
        each = statistics.median(reward_worker.spent)
        self.note(reward_ms=1e3 * each, rewards_per_s=1 / each, to_reward_kb=reward_worker.bytes / 1e3)
        rng = random.Random(1)
        self.picked = [rng.randrange(POOL) for _ in range(self.args.rollouts)]
        self.worker.reward_loop_worker_handles = [Scored(self.scored, self.picked)]

    def _copy(self, number: int) -> Any:
        """Return a copy of the rollout as the loop returns it."""
        output = self.pool[number].model_copy()
        output.extra_fields = dict(output.extra_fields)
        return output

    def _row(self, number: int) -> dict[str, Any]:
        """Return the columns of the data set and those that verl adds."""
        return {
            "uid": f"q{number // GROUP}",
            "session_id": number % GROUP,
            "global_steps": 1,
            "index": number,
            "raw_prompt": rollouts.PROMPT,
            "data_source": "searchR1_nq",
            "reward_model": {"style": "rule", "ground_truth": {"target": ["Oslo"]}},
            "extra_info": {"index": number, "split": "train"},
        }

    def _count_bytes(self) -> None:
        """Measure the bytes of a rollout's fields in the queue, for tensors and for other data."""
        tensors, others, silent = [], [], []
        for number in range(POOL):
            output = self._copy(number)
            output.reward_score = self.scored[number]["score"]
            output.extra_fields["reward_extra_info"] = dict(self.scored[number]["reward_extra_info"])
            fields = output.as_dict()
            tensors.append(sum(value.nbytes for value in fields.values() if torch.is_tensor(value)))
            others.append(_size_of_others(fields))
            if getattr(output, "_destination", None):
                output._destination = "nowhere"
                silent.append(_size_of_others(output.as_dict()))
        text = statistics.mean(script.text_bytes for script in self.scripts)
        other = statistics.mean(others)
        self.note(tensor_kb=statistics.mean(tensors) / 1e3, other_kb=other / 1e3, other_x=other / text)
        self.note(no_dump_kb=statistics.mean(silent or others) / 1e3)
        self.found |= {"text_kb": text / 1e3, "response_tokens": statistics.mean(map(_tokens, self.pool))}

    def drive(self) -> None:
        """Do the driver's work in a step and in a validation."""
        import transfer_queue as tq

        groups = self.args.rollouts // GROUP
        self._old_log_probs()
        trainer = self._trainer()
        buffer = trainer.replay_buffer
        tags = [{"is_prompt": True, "status": "finished", "global_steps": 1}] * groups
        gc.collect()
        with peak_memory(self):
            sample = None
            spent = []
            for _ in range(3):
                tq.kv_batch_put(keys=[f"q{n}" for n in range(groups)], partition_id="train", tags=tags)
                start = time.perf_counter()
                sample = buffer.sample(1, "train", groups)
                spent.append(time.perf_counter() - start)
            assert sample is not None
            self.note(sample_s=min(spent))
            batch = sample[0]
            assert len(batch.keys) == groups * GROUP, f"{len(batch.keys)} rollouts came back"
            look = repeat(tq.kv_list)
            self.note(look_s=look, look_share=look / (look + self._interval(buffer)))
            self._credit(trainer, batch)
        self._validate(trainer, batch)

    def _old_log_probs(self) -> None:
        """Put the fields that the actor's workers put before advantages are computed."""
        import transfer_queue as tq
        from tensordict import TensorDict

        keys = [f"q{n // GROUP}_{n % GROUP}_0" for n in range(self.args.rollouts)]
        for first in range(0, len(keys), 4 * AT_ONCE):
            some = keys[first : first + 4 * AT_ONCE]
            data = tq.kv_batch_get(keys=some, partition_id="train", select_fields=["rollout_log_probs"])
            fields = TensorDict({"old_log_probs": data["rollout_log_probs"]}, batch_size=len(some))
            tq.kv_batch_put(keys=some, partition_id="train", fields=fields)

    def _interval(self, buffer: Any) -> float:
        """Measure the seconds between two polls with this many rollouts."""
        from verl_mtgrpo.integration.trainer.buffer import poll_interval

        keys = self.args.rollouts * (GROUP + 1) // GROUP
        return poll_interval(keys, buffer.poll_interval) if self.ours else buffer.poll_interval

    def _trainer(self) -> Any:
        """Return the side's trainer, which has been built and has neither workers nor data."""
        from verl.trainer.ppo.v1 import get_trainer_cls

        trainer = get_trainer_cls("mtgrpo_sync" if self.ours else "sync")(self.config)
        trainer.global_steps, trainer.tokenizer = 1, self.tokenizer
        trainer._init_dump_executor()
        return trainer

    def _credit(self, trainer: Any, batch: Any) -> None:
        from verl_mtgrpo.integration.trainer import trainer as ours

        spent, measure = list[float](), ours.measure

        def timed(*arguments: Any) -> dict[str, float]:
            start = time.perf_counter()
            found = measure(*arguments)
            spent.append(time.perf_counter() - start)
            return found

        with mock.patch.object(ours, "measure", timed):
            self.note(advantage_s=repeat(lambda: trainer._compute_advantage(batch, {})))
        if self.ours:
            self.note(measure_s=min(spent))
        few = pick(batch, DUMPED * GROUP)

        def dump(rows: Any) -> None:
            trainer._log_rollout_data(rows, {}, str(self.folder))
            for future in trainer._dump_futures:
                future.result()

        self.note(dump_s=repeat(lambda: dump(few)))
        self.note(dump_default_s=repeat(lambda: dump(batch), times=1))
        without = self.found["sample_s"] + self.found["advantage_s"]
        self.note(driver_no_dump_s=without, driver_s=without + self.found["dump_default_s"])

    def _validate(self, trainer: Any, batch: Any) -> None:
        import transfer_queue as tq

        columns = ["uid", "rm_scores", "num_turns", "reward_model", "data_source", "extra_fields"]
        fetch = functools.partial(tq.kv_batch_get, keys=batch.keys, partition_id="train", select_fields=columns)
        self.note(fetch_s=repeat(fetch))
        samples = self.args.samples
        few = min(5, self.args.questions)
        projected = self._metrics_of_validation(trainer, few, samples) * self.args.questions / few
        whole = self.args.questions if projected < PATIENCE else max(few, int(self.args.questions * 30 / projected))
        self.found["validation_questions"] = whole
        spent = self._metrics_of_validation(trainer, whole, samples)
        self.note(validation_s=spent * self.args.questions / whole)

    def _metrics_of_validation(self, trainer: Any, questions: int, samples: int) -> float:
        rng = random.Random(2)
        numbers = [rng.randrange(POOL) for _ in range(questions * samples)]
        infos: dict[str, list] = {"reward": [self.scored[n]["score"] for n in numbers]}
        if self.ours:  # as verl collects them: None if a rollout lacks a name
            reported = [self.scored[n]["reward_extra_info"] for n in numbers]
            names = dict.fromkeys(name for one in reported for name in one)
            infos |= {name: [one.get(name) for one in reported] for name in names}
        uids = [f"q{n // samples}" for n in range(len(numbers))]
        start = time.perf_counter()
        trainer._val_metrics_update(["searchR1_nq"] * len(uids), uids, infos, [2 * self.args.turns] * len(uids))
        return time.perf_counter() - start


class RewardWorker:
    """Takes the place of Ray's handle of a reward worker: pickles each request, scores it, and measures the time."""

    def __init__(self, manager: Any) -> None:
        self.manager, self.spent, self.bytes, self.compute_score = manager, list[float](), 0.0, self

    async def remote(self, data: Any) -> dict[str, Any]:
        """Score one rollout."""
        start = time.perf_counter()
        sent = pickle.dumps(data, protocol=5)
        result = await self.manager.run_single(pickle.loads(sent))
        self.spent.append(time.perf_counter() - start)
        self.bytes += (len(sent) - self.bytes) / len(self.spent)
        return result


class Scored:
    """Takes its place too, and returns scores that are already known."""

    def __init__(self, scored: list[dict[str, Any]], picked: list[int]) -> None:
        self.scored, self.picked, self.compute_score = scored, picked, self

    async def remote(self, data: Any) -> dict[str, Any]:
        """Return the score of a rollout that was scored before."""
        known = self.scored[self.picked[int(data.non_tensor_batch["index"][0])]]
        return {"reward_score": known["score"], "reward_extra_info": dict(known["reward_extra_info"])}


def _size_of_others(fields: dict[str, Any]) -> int:
    return sum(len(pickle.dumps(value, protocol=5)) for value in fields.values() if not torch.is_tensor(value))


def _tokens(output: Any) -> int:
    return len(output.response_ids)


def repeat(function: Callable[[], Any], times: int = 3) -> float:
    """Return the seconds of the fastest of several calls, because the machine may be busy."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        spent.append(time.perf_counter() - start)
    return min(spent)


def pick(batch: Any, count: int) -> Any:
    """Return the first rows of a batch by name, in whole groups."""
    from transfer_queue import KVBatchMeta

    order = np.argsort([int(key[1:].split("_")[0]) for key in batch.keys], kind="stable")[:count]
    keys, tags = [batch.keys[row] for row in order], [batch.tags[row] for row in order]
    return KVBatchMeta(partition_id=batch.partition_id, keys=keys, tags=tags)


@contextlib.contextmanager
def peak_memory(side: Side) -> Iterator[None]:
    """Record by how much the memory of this process grows inside the block; Linux only."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _kilobytes(status, "VmRSS")
    yield
    side.note(peak_mb=(_kilobytes(status, "VmHWM") - before) / 1e3)


def _kilobytes(status: Path, name: str) -> int:
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(name)))
