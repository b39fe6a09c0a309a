"""The outcome from a reward function as verl has them (``reward.turn.outcome=compute_score``).

It is called as verl's ``NaiveRewardManager`` calls it (0.9.1, verl/experimental/reward_loop/reward_manager/naive.py),
except that ``reward.turn.solution`` decides the text.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from verl_mtgrpo.errors import TranscriptError
from verl_mtgrpo.integration.data_sources import as_verl_knows_it
from verl_mtgrpo.rewards import Transcript, TurnRewards
from verl_mtgrpo.rewards.metric_names import own_metrics
from verl_mtgrpo.rewards.presets import plain_number


def model_text(transcript: Transcript) -> str:
    """Return what the model wrote (``reward.turn.solution=turns``), turns joined by newlines, without tool results."""
    return "\n".join(turn.text for turn in transcript.turns)


def response_text(item: Any, tokenizer: Any) -> str:
    """Return all response tokens decoded (``reward.turn.solution=response``), tool results too, without special tokens.

    Args:
        item: One row of verl's ``DataProto``, with ``responses`` (right padded) and ``attention_mask``.
        tokenizer: The policy's.
    """
    response = item.batch["responses"]
    length = int(item.batch["attention_mask"][-response.shape[-1] :].sum())
    return tokenizer.decode(response[:length], skip_special_tokens=True)


def score_arguments(row: Mapping[str, Any], solution: str, *, own: bool) -> dict[str, Any]:
    """Return the keyword arguments of a reward function for one row of verl's non-tensor batch.

    A function of the user's own is given the row's own ``data_source`` and ground truth, verl's those that it knows
    (:func:`~.data_sources.as_verl_knows_it`).

    Args:
        row: The row.
        solution: The text to be scored.
        own: True if the function is the user's.
    """
    # "unknown" is verl's word in its metrics for rows without one.
    data_source, ground_truth = row.get("data_source") or "unknown", row["reward_model"]["ground_truth"]
    if not own:
        data_source, ground_truth = as_verl_knows_it(data_source, ground_truth)
    known = {
        "num_turns": row.get("__num_turns__"),
        "rollout_reward_scores": row.get("reward_scores", {}),
    }
    return {
        "data_source": data_source,
        "solution_str": solution,
        "ground_truth": ground_truth,
        "extra_info": {**(row.get("extra_info") or {}), **(row.get("tool_extra_fields") or {}), **known},
    }


async def ask(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call the reward function: awaited, or in a thread if it is a plain function."""
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    return await asyncio.to_thread(function, **arguments)


def read_score(result: Any) -> tuple[float, dict[str, Any]]:
    """Return the score and the named parts of a reward function's result.

    A part ``x`` becomes ``outcome/x``; one whose name is a metric of this package ``outcome/compute_score/x``.

    Raises:
        TranscriptError: It has no number, or the number is NaN or infinite.
    """
    parts = dict(result) if isinstance(result, Mapping) else {"score": result}
    try:
        score = float(parts["score"])
    except (KeyError, TypeError, ValueError) as error:
        raise TranscriptError(
            f"verl's reward function for the outcome (reward.turn.outcome=compute_score) returned {result!r:.200}",
            expected="a number, or a dict with a number as 'score'",
        ) from error
    if not math.isfinite(score):
        raise TranscriptError(
            f"verl's reward function for the outcome returned {score}",
            expected="a finite number",
            fix="raise verl_mtgrpo.errors.DropRollout for a rollout that cannot be scored",
        )
    named = {f"outcome/{name}": plain_number(value) for name, value in parts.items()}
    taken = own_metrics(named)
    return score, {
        f"outcome/compute_score/{name.removeprefix('outcome/')}" if name in taken else name: value
        for name, value in named.items()
    }


def with_score(rewards: TurnRewards, score: float, parts: Mapping[str, Any]) -> TurnRewards:
    """Return the rewards with this outcome in place of the preset's."""
    return replace(rewards, outcome=score, components={**rewards.components, **parts})
