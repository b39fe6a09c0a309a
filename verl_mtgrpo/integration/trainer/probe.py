"""Measure how likely the gold answer is at each state of a batch's rollouts, with one forward pass of a policy.

A state is where a turn begins: the prompt, and everything up to the turn's first token, tool results included. For each
there is a row: its tokens, the text before the answer, and the answer. The rows go through verl's own forward pass for
log-probs, by way of the TransferQueue in a partition of their own. Equal rows, such as the prompts of a group, are
computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.padding import response_from_nested

from verl_mtgrpo.credit.turns import Turns
from verl_mtgrpo.errors import ConfigError, CreditInputError, DataError
from verl_mtgrpo.integration.settings import ProbeSettings
from verl_mtgrpo.rewards.answers import accepted_answers

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

PARTITION = "mtgrpo_probe"
"""Partition of the queue for the rows of probes, away from the rollouts that others wait for."""


@dataclass(frozen=True)
class Layout:
    """Rows of a probe, and where their results belong.

    Attributes:
        states: ``(N, ...)``, the tokens up to the answer of each distinct row.
        answers: Its answer's tokens.
        row_BK: For each turn of each rollout the number of its row; -1 where there is no turn.
    """

    states: list[tuple[int, ...]]
    answers: list[tuple[int, ...]]
    row_BK: list[list[int]]


def lay_out(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    first_BK: Sequence[Sequence[int]],
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Layout:
    """Return the distinct rows of a probe.

    Args:
        prompts: The prompt of each rollout, as token ids.
        responses: Its response.
        first_BK: The position in its response of the first token of each of its turns.
        asked: What stands between a state and its gold answer, and the answer.
    """
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    turns = max(map(len, first_BK), default=0)
    row_BK: list[list[int]] = []
    for prompt, response, firsts, (before, answer) in zip(prompts, responses, first_BK, asked, strict=True):
        rows = [
            known.setdefault(((*prompt, *response[:first], *before), tuple(answer)), len(known)) for first in firsts
        ]
        row_BK.append(rows + [-1] * (turns - len(rows)))
    return Layout([state for state, _ in known], [answer for _, answer in known], row_BK)


def answer_log_probs(ppo: PPOTrainer, batch: KVBatchMeta, turns: Turns, settings: ProbeSettings) -> Tensor:
    """Return the mean log-prob of the gold answer's tokens where each turn begins: ``(B, K)``, 0 where there is none.

    Args:
        ppo: verl's trainer, whose worker groups compute it.
        batch: A training batch.
        turns: Its turns.
        settings: ``trainer.turn.probe``.

    Raises:
        ConfigError: the model reads images, which have positions of their own.
        CreditInputError: a row has no gold answer.
    """
    columns = ["prompts", "responses", "reward_model", "position_ids"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=str(batch.partition_id), select_fields=columns)
    if data["position_ids"].dim() > 2:
        raise ConfigError("trainer.turn.probe measures answers of text models only", fix="remove information_gain")
    tokenizer: Any = ppo.tokenizer
    counts, first_BK = turns.count_B.tolist(), turns.first_BK.tolist()
    layout = lay_out(
        [row.tolist() for row in data["prompts"].unbind()],
        [row.tolist() for row in data["responses"].unbind()],
        [firsts[:count] for firsts, count in zip(first_BK, counts, strict=True)],
        [
            (_asked(row, settings.before, tokenizer) if count else ((), ()))
            for row, count in zip(data["reward_model"], counts, strict=True)
        ],
    )
    found_N = torch.tensor([*_forward(ppo, layout, settings.by), 0.0], device=turns.count_B.device)
    row_BK = torch.tensor(layout.row_BK, dtype=torch.long).reshape(turns.alive_BK.shape)
    return found_N[row_BK.to(found_N.device)]  # -1 is the 0 at the end


def _asked(row: Any, before: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the text before the answer and a row's first accepted answer, as token ids.

    Both are tokenised together, as the model writes them. A token across the border, such as a space and the answer's
    first letters, is the answer's.
    """
    try:
        text = accepted_answers((getattr(row, "data", row) or {}).get("ground_truth"))[0]
    except DataError as error:
        raise CreditInputError(f"information_gain measures the gold answer, and {error}") from error
    alone = tokenizer.encode(before, add_special_tokens=False)
    both = tokenizer.encode(before + text, add_special_tokens=False)
    pairs = enumerate(zip(alone, both, strict=False))
    border = next((place for place, (one, other) in pairs if one != other), len(alone))
    return both[:border], both[border:]


def _forward(ppo: PPOTrainer, layout: Layout, by: str) -> list[float]:
    """Return the mean log-prob of each row's answer."""
    order = sorted(range(len(layout.states)), key=lambda row: -len(layout.states[row]))
    if not order:
        return []
    in_actor = by == "policy" or ppo.ref_in_actor
    group: Any = ppo.actor_rollout_wg if in_actor else ppo.ref_policy_wg
    ranks, models = group.world_size, ppo.config.actor_rollout_ref
    multiple = _multiple(models.rollout if in_actor else models.ref, ranks)
    order += order[-1:] * (-len(order) % multiple)  # the shortest row again
    order = [row for rank in range(ranks) for row in order[rank::ranks]]  # equal work for all ranks
    rows = [_row(layout.states[row], layout.answers[row]) for row in order]
    keys = [f"{number}_0_0" for number in range(len(rows))]
    tags = [{"seq_len": len(row["input_ids"])} for row in rows]
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=list_of_dict_to_tensordict(rows), tags=tags)
    try:
        asked: dict[str, Any] = {
            "calculate_entropy": False,
            "compute_loss": False,
            "temperature": models.rollout.temperature,
        }
        if by == "reference" and in_actor:  # it is the policy without its adapter
            asked["no_lora_adapter"] = True
        meta = KVBatchMeta(partition_id=PARTITION, keys=keys, tags=tags, extra_info=asked)
        if in_actor:
            group.compute_log_prob(meta)
        else:
            group.compute_ref_log_prob(meta)
        data = tq.kv_batch_get(keys=keys, partition_id=PARTITION, select_fields=["log_probs", "response_mask"])
    finally:
        tq.kv_clear(keys=keys, partition_id=PARTITION)
    log_probs = response_from_nested(data["log_probs"], data["response_mask"]).unbind()
    means = {row: float(values.float().mean()) for row, values in zip(order, log_probs, strict=True)}
    return [means[row] for row in range(len(layout.states))]


def _row(state: Sequence[int], answer: Sequence[int]) -> dict[str, Any]:
    """Return a row as verl's agent loops write them: the state is the prompt, the answer is the response."""
    prompts, responses = torch.tensor(state, dtype=torch.int64), torch.tensor(answer, dtype=torch.int64)
    input_ids = torch.cat([prompts, responses])
    mask = torch.ones_like(responses)
    return {
        "prompts": prompts,
        "responses": responses,
        "input_ids": input_ids,
        "position_ids": torch.arange(len(input_ids)),
        "response_mask": mask,
        "loss_mask": mask,
    }


def _multiple(settings: Any, ranks: int) -> int:
    """Return what the number of rows has to be a multiple of: the ranks, times their micro-batch if that is fixed."""
    if settings.log_prob_use_dynamic_bsz:
        return ranks
    return ranks * int(settings.log_prob_micro_batch_size_per_gpu or 1)
