"""Take the outcome from a reward function of verl's kind (``reward.turn.outcome=compute_score``).

The function is called as verl's ``NaiveRewardManager`` calls it (0.9.1,
verl/experimental/reward_loop/reward_manager/naive.py), except that ``reward.turn.solution`` decides which text it gets.
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
    """Return the model's turns joined by newlines, without tool results (``reward.turn.solution=turns``)."""
    return "\n".join(turn.text for turn in transcript.turns)


def response_text(item: Any, tokenizer: Any) -> str:
    """Return the decoded response with tool results, without special tokens (``reward.turn.solution=response``).

    Args:
        item: One row of verl's ``DataProto``, with ``responses`` (right padded) and ``attention_mask``.
        tokenizer: The policy's tokenizer.
    """
    response = item.batch["responses"]
    length = int(item.batch["attention_mask"][-response.shape[-1] :].sum())
    return tokenizer.decode(response[:length], skip_special_tokens=True)


def score_arguments(row: Mapping[str, Any], solution: str, *, own: bool) -> dict[str, Any]:
    """Return the keyword arguments of a reward function for one row of verl's non-tensor batch.

    A function of the user's gets the row's ``data_source`` and ground truth unchanged; verl's function gets them in the
    form that it knows (:func:`~.data_sources.as_verl_knows_it`).

    Args:
        row: The row.
        solution: The text to score.
        own: True if the function is the user's.
    """
    # verl's metrics call rows without a data_source "unknown".
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
    """Await the reward function, or call it in a thread if it is not a coroutine function."""
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    return await asyncio.to_thread(function, **arguments)


def read_score(result: Any) -> tuple[float, dict[str, Any]]:
    """Return the score and the named parts of a reward function's result.

    A part ``x`` becomes ``outcome/x``, or ``outcome/compute_score/x`` if this package has a metric of that name.

    Raises:
        TranscriptError: There is no number, or it is NaN or infinite.
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
    """Return the rewards with this outcome instead of the preset's."""
    note = "what compute_score returned" if rewards.notes else ""
    return replace(rewards, outcome=score, components={**rewards.components, **parts}, outcome_note=note)
