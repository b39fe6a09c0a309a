"""Replace rollout and reward workers that die: ``TurnAgentLoopManager``, a subclass of verl's agent loop manager.

verl starts its workers once. If one dies in the middle of a step, its work never ends, and the trainer waits
for it indefinitely; if it dies between two steps, the next one ends with Ray's traceback. This manager, chosen by
``actor_rollout_ref.rollout.agent.agent_loop_manager_class``, checks which of the run's named actors are gone whenever
the trainer waits for rollouts (called by its replay buffer,
:class:`~verl_mtgrpo.integration.trainer.buffer.TurnBuffer`):

- A rollout worker is replaced, and the questions that it had not finished are asked again, but only once: if a second
  worker dies with the same question, the question is abandoned and its missing rollouts are counted as failed.
- The rollouts of a reward worker are scored by another one, and the worker is replaced if this process knows how (it
  does not with verl's reward model). A rollout that two reward workers died with fails, and is counted.
- A rollout server holds a model on an accelerator and cannot be replaced: the run stops and says so.

If Ray's head is too busy to say who is alive, nothing happens but that it is asked again (:mod:`.ray_head`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
import transfer_queue as tq
from omegaconf import OmegaConf
from ray.exceptions import ActorUnavailableError, RayActorError
from verl.experimental.reward_loop import RewardLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils.tensordict_utils import index_select_tensor_dict

from verl_mtgrpo.errors import WorkerDiedError
from verl_mtgrpo.integration.decide import ask_for_decisions
from verl_mtgrpo.integration.rollout.ray_head import RayHead
from verl_mtgrpo.integration.row_loops import stands_for, use_default_loop
from verl_mtgrpo.integration.trees import ask_for_trees

logger = logging.getLogger(__name__)

TRIES = 2
"""A question, or a rollout to score, is abandoned when this many workers have died with it."""
LOOK_EVERY_S = 1.0
GO_ON = "Start again with the same command: verl continues from its last checkpoint"
_SCORERS_BACK_S = 120.0
_COUNT_EVERY_S = 30.0
_LOOKING = ThreadPoolExecutor(1, "mtgrpo-look")
_REWARD_WORKER = "reward_loop_worker_"
_SERVER = "_server_"


@dataclass(frozen=True)
class _Given:
    """Questions that were sent to a worker: verl's batch, and verl's name for each row."""

    uids: tuple[str, ...]
    batch: Any
    partition: str


class TurnAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager of rollout workers, which also replaces those that die; see the module docstring."""

    def __init__(
        self,
        config: Any,
        llm_client: Any,
        teacher_client: Any = None,
        reward_loop_worker_handles: Sequence[Any] | None = None,
    ):
        handles = list(reward_loop_worker_handles or ())
        self.reward_names = [f"{_REWARD_WORKER}{number}" for number in range(len(handles))]  # as verl names them
        self.head, self.patience_s = RayHead(), stall_timeout(config)
        scorers = [RewardWorkers(handles, self.patience_s)] if handles else reward_loop_worker_handles
        super().__init__(config, llm_client, teacher_client, scorers)
        self.given: dict[str, list[_Given]] = {}
        self.tries: Counter[str] = Counter()
        self.asked_again = 0
        self.next_look = 0.0
        self.own_reward_workers: list[Any] = []  # Ray ends an actor without a reference
        self.sent_again: dict[Any, Any] = {}
        self.said_loop = False

    async def _init_agent_loop_workers(self) -> None:
        await super()._init_agent_loop_workers()
        while (there := self._named_actors()) is None:
            if self.head.silent_s > self.patience_s:
                raise WorkerDiedError(f"Ray's head has not answered for {self.head.silent_s:.0f} s. {GO_ON}")
            await asyncio.sleep(LOOK_EVERY_S)
        self.actors = there
        self.names = [
            next(name for name in sorted(self.actors) if name.startswith(f"agent_loop_worker_{number}_"))
            for number in range(len(self.agent_loop_workers))
        ]

    def generate_sequences(self, prompts: Any) -> None:
        """Do what verl does, for rows of verl's tool examples too, and ask for trees where they are to grow.

        Dead workers are detected by :meth:`look`.
        """
        validating = prompts["validate"] if "validate" in prompts else False  # noqa: SIM401  get() gives a wrapper
        partition = "val" if validating else "train"
        if use_default_loop(prompts, self.config) and not self.said_loop:
            self.said_loop = True
            logger.warning(
                "questions name verl's tool_agent (column agent_name): they are rolled out by this run's loop, %s",
                stands_for(self.config),
            )
        if not validating:
            ask_for_trees(prompts, self.config)
        ask_for_decisions(prompts, self.config, bool(validating))
        chunks = prompts.chunk(len(self.agent_loop_workers))
        sent = [self._give(number, chunk, partition) for number, chunk in enumerate(chunks)]
        for worker, reference in zip(self.agent_loop_workers, sent, strict=False):
            _wait_until_sent(worker, reference)

    def look(self, unfinished: Mapping[str, set[str]]) -> None:
        """Replace dead workers and ask their questions again; at most once in :data:`LOOK_EVERY_S`.

        Args:
            unfinished: verl's names of the questions without a result, by partition.

        Raises:
            WorkerDiedError: A process has died that the run cannot do without.
        """
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_EVERY_S
        self._raise_errors()
        self._forget_finished(unfinished)
        dead = self.check_servers()
        for name in sorted(dead.intersection(self.reward_names)):
            self._replace_reward_worker(name)
        for number, name in enumerate(self.names):
            if name in dead:
                self._replace_rollout_worker(number)

    def check_servers(self) -> set[str]:
        """Return the names of dead actors; empty while Ray's head does not answer.

        Raises:
            WorkerDiedError: A rollout server is among them, or the last reward worker if it cannot be replaced.
        """
        there = self._named_actors()
        if there is None:
            return set()  # unknown for now; the next look may tell, and the stall timeout limits the wait
        dead = self.actors - there
        servers = sorted(name for name in dead if _SERVER in name)
        if servers:
            raise WorkerDiedError(
                f"the rollout server {', '.join(servers)} died (killed, or out of memory: Ray's lines about it are in "
                f"this log), and without it there are no rollouts. {GO_ON}"
            )
        if self.reward_names and dead.issuperset(self.reward_names) and not self._replaces_reward_workers():
            raise WorkerDiedError(
                "the last reward worker died (killed, or out of memory: Ray's lines about it are in this log), and "
                f"without one no rollout is scored. {GO_ON}"
            )
        return dead

    def _named_actors(self) -> set[str] | None:
        """Return the names of living actors; None if Ray's head does not answer."""
        return self.head.ask(lambda: set(ray.util.list_named_actors()))

    def take_asked_again(self) -> int:
        """Return the number of training questions sent again since the last call."""
        count, self.asked_again = self.asked_again, 0
        return count

    def _give(self, number: int, batch: Any, partition: str) -> Any:
        # Remember the batch before sending it, because sending may be what reveals that the worker is dead.
        one = _Given(tuple(str(uid) for uid in batch["uid"]), batch, partition)
        self.given.setdefault(self.names[number], []).append(one)
        return self.agent_loop_workers[number].generate_sequences.remote(batch)

    def _raise_errors(self) -> None:
        """Raise the errors of workers that got a dead one's questions, unless they died as well."""
        for reference, worker in list(self.sent_again.items()):
            if ray.wait([reference], timeout=0)[0]:
                del self.sent_again[reference]
                _wait_until_sent(worker, reference)

    def _forget_finished(self, unfinished: Mapping[str, set[str]]) -> None:
        for name, batches in self.given.items():
            self.given[name] = [one for one in batches if unfinished.get(one.partition, set()).intersection(one.uids)]
        there = {uid for batches in self.given.values() for one in batches for uid in one.uids}
        self.tries = Counter({uid: count for uid, count in self.tries.items() if uid in there})

    def _replace_reward_worker(self, old: str) -> None:
        what = "nothing can replace it"
        if self._replaces_reward_workers():
            # Ray remembers for a while which actor a name belonged to, so the replacement needs a new one.
            number = old.removeprefix(_REWARD_WORKER).partition("_")[0]
            name = f"{_REWARD_WORKER}{number}_{uuid4().hex[:8]}"
            made = ray.remote(RewardLoopWorker).options(name=name)
            worker = self.head.ask(lambda: made.remote(self.config, None))
            if worker is None:
                return  # the next look finds it dead again
            self.own_reward_workers.append(worker)
            self.reward_names.append(name)
            self.actors.add(name)
            what = f"{name} replaces it"
        self.reward_names.remove(old)
        self.actors.discard(old)
        logger.error(
            "the reward worker %s died (killed, or out of memory: Ray's lines about it are in this log); %s. The "
            "rollouts that it was scoring are scored by another one; %d are left",
            *(old, what, len(self.reward_names)),
        )

    def _replaces_reward_workers(self) -> bool:
        """Return True unless workers need the address of a reward model's router, which only the trainer has."""
        return not self.config.reward.reward_model.enable

    def _replace_rollout_worker(self, number: int) -> None:
        old, name = self.names[number], f"agent_loop_worker_{number}_{uuid4().hex[:8]}"
        # Ray may choose any node, because the old worker may have died with its node.
        made = self.agent_loop_workers_class.options(name=name)
        given = (self.config, self.llm_client, self.teacher_client, self.reward_loop_worker_handles)
        worker = self.head.ask(lambda: made.remote(*given))
        if worker is None:
            return  # the next look finds the old one dead again
        self.agent_loop_workers[number] = worker
        self.names[number] = name
        self.actors = (self.actors - {old}) | {name}
        again = given_up = 0
        for one in self.given.pop(old, ()):
            more, fewer = self._ask_again(number, one)
            again, given_up = again + more, given_up + fewer
        logger.error(
            "the rollout worker %s died (killed, or out of memory: Ray's lines about it are in this log); %s replaces "
            "it. Of its unfinished questions %d are sent again and %d are abandoned (two workers died with "
            "them) and counted as failed",
            *(old, name, again, given_up),
        )

    def _ask_again(self, number: int, one: _Given) -> tuple[int, int]:
        """Send a dead worker's unfinished questions to another one; return how many, and how many are abandoned."""
        queued = (tq.kv_list(one.partition) or {}).get(one.partition, {})
        open_rows = [
            row for row, uid in enumerate(one.uids) if queued.get(uid, {}).get("status") in ("pending", "running")
        ]
        self.tries.update(one.uids[row] for row in open_rows)
        rows = [row for row in open_rows if self.tries[one.uids[row]] < TRIES]
        lost = [one.uids[row] for row in open_rows if row not in rows]
        if lost:  # those of their rollouts that are finished are still trained on
            tq.kv_batch_put(keys=lost, partition_id=one.partition, tags=[{"status": "failure"}] * len(lost))
        if not rows:
            return 0, len(lost)
        uids = {one.uids[row] for row in rows}
        begun = [key for key in queued if key not in uids and key.partition("_")[0] in uids]
        if begun:
            tq.kv_clear(keys=begun, partition_id=one.partition)
        tq.kv_batch_put(keys=list(uids), partition_id=one.partition, tags=[{"status": "pending"}] * len(uids))
        reference = self._give(number, index_select_tensor_dict(one.batch, rows), one.partition)
        self.sent_again[reference] = self.agent_loop_workers[number]
        if one.partition == "train":
            self.asked_again += len(rows)
        return len(rows), len(lost)


def _wait_until_sent(worker: Any, reference: Any) -> None:
    """Wait until the worker has accepted its questions; if it is dead, ``look`` finds out.

    Raises:
        RayActorError: The worker could not be created, and another one would fail in the same way.
    """
    try:
        ray.get(reference)
    except ActorUnavailableError:
        ray.kill(worker)  # Ray does not know whether they arrived, and two workers must not ask them
    except RayActorError as error:
        if error.actor_init_failed:
            raise


class RewardWorkers:
    """Stands in for verl's reward workers in a rollout worker: if one dies, another one scores the rollout.

    verl picks a worker from a list at random and calls ``worker.compute_score.remote(data)``; we give it a list that
    contains only this object.

    Args:
        handles: verl's reward workers.
        patience_s: How many seconds Ray's head may not answer before the rollout fails.
    """

    def __init__(self, handles: Sequence[Any], patience_s: float = math.inf):
        self.handles, self.wanted = list(handles), len(handles)
        self.next_count = 0.0
        self.head, self.patience_s = RayHead(), patience_s

    @property
    def compute_score(self) -> RewardWorkers:
        """Return the object that verl takes for an actor's method, since it calls ``remote`` on it."""
        return self

    def remote(self, data: Any) -> Any:
        """Return the score of a rollout, to be awaited."""
        return self._score(data)

    async def _score(self, data: Any) -> dict[str, Any]:
        if len(self.handles) < self.wanted and time.monotonic() > self.next_count:
            self.next_count = time.monotonic() + _COUNT_EVERY_S
            self.handles = await self._alive() or self.handles
        for left in reversed(range(TRIES)):
            try:
                return await random.choice(self.handles).compute_score.remote(data)
            except RayActorError as error:
                if not left or error.actor_init_failed:
                    raise
                self.handles = await self._wait_for_one()
        raise AssertionError("unreachable")

    async def _wait_for_one(self) -> list[Any]:
        deadline = time.monotonic() + _SCORERS_BACK_S
        while not (alive := await self._alive()):
            if self.head.silent_s > self.patience_s:
                raise WorkerDiedError(
                    f"a reward worker died, and Ray's head has not said for {self.head.silent_s:.0f} s which ones are "
                    f"left. {GO_ON}"
                )
            if alive is None:
                deadline = time.monotonic() + _SCORERS_BACK_S  # starts anew, since we do not know whether any is left
            elif time.monotonic() > deadline:
                raise WorkerDiedError(
                    f"none of the {self.wanted} reward workers is left, and none came back within "
                    f"{_SCORERS_BACK_S:.0f} s. {GO_ON}"
                )
            await asyncio.sleep(1.0)
        return alive

    async def _alive(self) -> list[Any] | None:
        """Return the workers that Ray knows, replacements included; None if it does not answer.

        Ray is asked in a separate thread: a busy head may take a minute, and the other rollouts should go on meanwhile.
        """
        return await asyncio.get_running_loop().run_in_executor(_LOOKING, self.head.ask, _reward_workers_alive)


def _reward_workers_alive() -> list[Any]:
    alive = []
    for name in ray.util.list_named_actors():
        if name.startswith(_REWARD_WORKER):
            with suppress(ValueError):  # it has died since it was listed
                alive.append(ray.get_actor(name))
    return alive


def stall_timeout(config: Any) -> float:
    """Return the seconds after which a stalled run gives up (``sampler_kwargs.stall_timeout_s``), or infinity."""
    seconds = OmegaConf.select(config, "trainer.v1.sampler.sampler_kwargs.stall_timeout_s")
    return math.inf if seconds is None else float(seconds)
