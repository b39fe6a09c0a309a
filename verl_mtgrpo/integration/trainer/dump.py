"""Add turns and credit to verl's dump of training rollouts (``trainer.rollout_data_dir``).

verl writes text and score. A row gets, as in validation dumps, the transcript, what each turn was paid and what was
measured, and beyond that what the turns were trained with: ``turn_advantages``, ``turn_credited`` (the rewards that the
estimator saw), ``turn_dense`` (what dense rewards added to them), ``turn_values`` (with a critic), ``turn_surprisal``
(the mean of -log π, if the estimator asks for log-probs), ``turn_log_ratio`` (the sum of log π - log π_ref, if it asks
for both), ``node_path`` (of trees), ``role`` and the like (of outputs of roles), ``pair_id`` and ``pair_side`` (of
pairs of actions), the estimator and its knobs. ``mtgrpo report`` shows it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor
from transfer_queue import KVBatchMeta

from verl_mtgrpo.credit import ESTIMATORS, segment_turns
from verl_mtgrpo.integration.pairs import PAIR_ID, PAIR_SIDE
from verl_mtgrpo.integration.rollout.transcripts import fetch_transcripts, to_json
from verl_mtgrpo.integration.settings import estimator_settings
from verl_mtgrpo.integration.trainer.left_out import rollout_of
from verl_mtgrpo.integration.trainer.queue import LeftOut, rewards_column, rollout_fields, select, token_columns
from verl_mtgrpo.integration.trainer.turn_critic import tells_apart
from verl_mtgrpo.rewards import DROPPED, DROPPED_REASON, NODE_PATH, TRANSCRIPT, TURN_DENSE, TURN_REWARDS
from verl_mtgrpo.roles import CONVERSATION, FED_BY, LEARNT, OUTPUT_ID, ROLE

_VERLS_KNOBS = {
    "gae": ("gamma", "lam"),
    "grpo": ("norm_adv_by_std_in_grpo",),
}
"""What the estimators of verl that our presets use read from ``algorithm``."""

OF_ROLES = (ROLE, OUTPUT_ID, FED_BY, CONVERSATION, LEARNT)
"""What the dump has of an output of a role."""
NO_COMPANY = "every other rollout of its group was lost, so there was nothing to compare it with"
"""Why a rollout that was scored was not trained on."""


def pick_groups(batch: KVBatchMeta, groups: int, *, seed: int) -> KVBatchMeta:
    """Choose some prompts and return all rollouts of each, because a baseline is over all of them.

    Args:
        batch: rows named ``{prompt}_{rollout}_{output}``.
        groups: how many; 0 or more than there are: all.
        seed: the same one takes the same groups of the same batch.
    """
    prompts = sorted({_prompt(key) for key in batch.keys})
    if not groups or len(prompts) <= groups:
        return batch
    taken = set(random.Random(seed).sample(prompts, groups))
    return select(batch, [row for row, key in enumerate(batch.keys) if _prompt(key) in taken])


def credit_rows(
    batch: KVBatchMeta, config: Any, *, documents: bool, left_out: LeftOut | None = None
) -> dict[str, dict[str, Any]]:
    """Return, for each row of a batch by verl's name, the columns that the dump has beyond verl's.

    Args:
        batch: rows of a training step, with those that left its batches before advantages were computed.
        config: verl's whole config.
        documents: False leaves the text of passages out of the transcripts.
        left_out: the rows that left. They were not credited, so their advantages are 0; None: there are none.
    """
    left_out = left_out or LeftOut()
    dropped, alone = keys_of(left_out.dropped), keys_of(left_out.alone)
    trained = select(batch, [row for row, key in enumerate(batch.keys) if key not in dropped | alone])
    others = select(batch, [row for row, key in enumerate(batch.keys) if key in dropped | alone])
    rows = _trained_rows(trained, config, documents=documents) if trained.keys else {}
    rows |= _untrained_rows(others, alone=alone, documents=documents) if others.keys else {}
    _mark_leaves(rows)
    estimator = _estimator(config)
    return {key: {**row, **estimator} for key, row in rows.items()}


def _mark_leaves(rows: Mapping[str, dict[str, Any]]) -> None:
    """Give rows of a tree that have no path, because they were dropped, an empty one: they are rollouts, too."""
    trees = {rollout_of(key) for key, row in rows.items() if NODE_PATH in row}
    for key, row in rows.items():
        if rollout_of(key) in trees:
            row.setdefault(NODE_PATH, "")


def keys_of(batches: Sequence[KVBatchMeta]) -> set[str]:
    """Return the names of all rows of some batches."""
    return {key for batch in batches for key in batch.keys}


def join(batch: KVBatchMeta, others: Sequence[KVBatchMeta]) -> KVBatchMeta:
    """Return the rows of a batch and of others of the same partition."""
    return KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[*batch.keys, *(key for other in others for key in other.keys)],
        tags=[*batch.tags, *(tag for other in others for tag in other.tags)],
    )


def _trained_rows(batch: KVBatchMeta, config: Any, *, documents: bool) -> dict[str, dict[str, Any]]:
    """Describe rows whose advantages verl has computed."""
    rewards = rewards_column(config)
    critic = [] if tells_apart(config) else ["values"]  # a discriminator's logits are no values
    names = [rewards, "advantages", "response_mask", *critic]
    asked = _fields(str(config.algorithm.adv_estimator))
    names += [name for name in ("old_log_probs", "ref_log_prob", "values_after") if name in asked]
    tokens, data = token_columns(batch, names, ["extra_fields", TURN_DENSE])
    dense = [getattr(one, "data", one) for one in data[TURN_DENSE]] if TURN_DENSE in data else None
    of_turns = [tokens.get(name) for name in ("values", "old_log_probs", "ref_log_prob", "values_after")]
    turns = turn_columns(tokens[rewards], tokens["advantages"], tokens["response_mask"], *of_turns)
    rows: dict[str, dict[str, Any]] = {}
    transcripts = fetch_transcripts(batch)
    for row, (key, fields) in enumerate(zip(batch.keys, rollout_fields(data), strict=True)):
        info = _info(fields, transcripts[row], documents=documents)
        if TRANSCRIPT in info and fields.get(LEARNT, True):
            info |= {name: json.dumps(values[row]) for name, values in turns.items()}
            info |= {} if dense is None else {TURN_DENSE: dense[row]}
        elif TRANSCRIPT in info:
            info |= _no_credit(info)
        rows[key] = info
    return rows


def _untrained_rows(batch: KVBatchMeta, *, alone: Collection[str], documents: bool) -> dict[str, dict[str, Any]]:
    """Describe rows that left the batch before advantages were computed: rewards and measurements, no credit."""
    _, data = token_columns(batch, (), ["extra_fields"])
    rows: dict[str, dict[str, Any]] = {}
    for key, fields, transcript in zip(batch.keys, rollout_fields(data), fetch_transcripts(batch), strict=True):
        info = _info(fields, transcript, documents=documents)
        if TRANSCRIPT in info:
            info |= _no_credit(info)
        if key in alone:
            info |= {DROPPED: 1.0, DROPPED_REASON: NO_COMPANY}
        rows[key] = info
    return rows


def _no_credit(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the credit of a rollout that nothing is learnt from: 0 for each of its turns."""
    nothing = json.dumps([0.0] * len(json.loads(info[TURN_REWARDS])))
    return {"turn_credited": nothing, "turn_advantages": nothing}


def _info(fields: Any, transcript: str | None, *, documents: bool) -> dict[str, Any]:
    """Return the reward manager's extra info of a rollout, and its transcript."""
    info = dict((fields.get("reward_extra_info") if isinstance(fields, Mapping) else None) or {})
    info.pop("uid", None)  # verl writes the row's name there
    if isinstance(fields, Mapping) and fields.get(NODE_PATH):
        info[NODE_PATH] = fields[NODE_PATH]
    if isinstance(fields, Mapping) and fields.get(ROLE):
        info |= {name: fields.get(name, "") for name in OF_ROLES}
    if isinstance(fields, Mapping) and fields.get(PAIR_ID):
        info |= {name: fields[name] for name in (PAIR_ID, PAIR_SIDE)}
    if transcript is not None:
        info[TRANSCRIPT] = transcript if documents else _without_texts(transcript)
    return info


def _estimator(config: Any) -> dict[str, str]:
    name = str(config.algorithm.adv_estimator)
    return {"estimator": name, "estimator_settings": json.dumps(_settings(name, config.algorithm))}


def turn_columns(
    rewards: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    values: Tensor | None = None,
    log_probs: Tensor | None = None,
    ref_log_probs: Tensor | None = None,
    values_after: Tensor | None = None,
) -> dict[str, list[list[float]]]:
    """Token columns as numbers of turns; for each row as many as it has turns.

    Args:
        rewards: ``(B, T)``, as the estimator saw them: summed over the turn.
        advantages: ``(B, T)``: the mean over the turn's tokens (they are all equal but in token-level estimators).
        response_mask: ``(B, T)``, 1 at generated tokens.
        values: ``(B, T)``, a critic's, read at a turn's first token; None: no such column.
        log_probs: ``(B, T)``, log π: minus the mean over the turn's tokens; None: no such column.
        ref_log_probs: ``(B, T)``, log π_ref: log π minus these, summed over the turn's tokens; None: no such column.
        values_after: ``(B, T)``, a critic's after each token, read at a turn's last one; None: no such column.
    """
    turns = segment_turns(response_mask)
    columns = {
        "turn_credited": turns.sum_over_turns(rewards.float()),
        "turn_advantages": turns.sum_over_turns(advantages.float()) / turns.tokens_BK.clamp(min=1),
    }
    if values is not None:
        columns["turn_values"] = turns.at_first(values.float())
    if values_after is not None:
        columns["turn_values_after"] = turns.at_last(values_after.float())
    if log_probs is not None:
        columns["turn_surprisal"] = -turns.sum_over_turns(log_probs.float()) / turns.tokens_BK.clamp(min=1)
    if log_probs is not None and ref_log_probs is not None:
        columns["turn_log_ratio"] = turns.sum_over_turns(log_probs.float() - ref_log_probs.float())
    counts = turns.count_B.tolist()
    return {
        name: [row[:count] for row, count in zip(column.tolist(), counts, strict=True)]
        for name, column in columns.items()
    }


def with_credit(infos: Mapping[str, list[Any]], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Join verl's columns of a dump and ours, row by row.

    Args:
        infos: verl's ``reward_extra_infos_dict``; its ``uid`` names the rows.
        rows: what :func:`credit_rows` found; empty: verl's columns as they are.
    """
    if not rows:
        return dict(infos)
    found = [rows[key] for key in infos["uid"]]
    names = dict.fromkeys(name for row in found for name in row)
    return {**infos, **{name: [row.get(name) for row in found] for name in names}}


def _prompt(key: str) -> str:
    return key.rsplit("_", 2)[0]


def _fields(estimator: str) -> tuple[str, ...]:
    return ESTIMATORS[estimator].fields if estimator in ESTIMATORS else ()


def _settings(estimator: str, algorithm: Any) -> dict[str, Any]:
    if estimator in ESTIMATORS:
        return estimator_settings(estimator, algorithm)
    return {name: OmegaConf.select(algorithm, name) for name in _VERLS_KNOBS.get(estimator, ())}


def _without_texts(transcript: str) -> str:
    known = json.loads(transcript)
    for turn in known["turns"]:
        for call in turn["tool_calls"]:
            for document in call["documents"]:
                document["text"] = ""
    return to_json(known)
