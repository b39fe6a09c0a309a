"""The losses of a turn critic and of a discriminator, which verl's critic workers call instead of ``value_loss``.

verl's loss reads the critic before each generated token, and never after the last one. A turn critic learns at other
places (:mod:`verl_mtgrpo.credit.turn_td`): where turns begin, and right after they end; a discriminator right after
they end (:mod:`verl_mtgrpo.credit.discriminator`). Our trainers write what is
learned at which place into the batch, so that nothing here knows turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from verl.utils.metric import AggregationType, Metric

from verl_mtgrpo.credit.discriminator import classification_loss

TARGETS = "value_targets"
"""Column of what is learned, one number per place of a row: its number of response tokens plus one."""
WEIGHTS = "value_weights"
"""Column of how much each place counts, of the same shape; 0 where nothing is learned."""


def turn_value_loss(model_output: dict[str, Any], data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """Return Σ_p w_p ½ (V_p - target_p)² over the places of all rows, divided by the rows of the mini-batch.

    The division is by the rows of the whole mini-batch on all workers, and gradients are averaged over workers: how the
    mini-batch is cut into micro-batches changes nothing. Values are not clipped: targets stay where they are during an
    update, and a critic that makes many passes has to be able to reach them.

    Args:
        model_output: ``values`` of every token of each row, prompt included: nested, or all rows in one.
        data: verl's micro-batch, with :data:`TARGETS` and :data:`WEIGHTS`.
        dp_group: Not used; verl passes it.

    Returns:
        The loss, and metrics for verl's log.
    """
    return _weighted(lambda value, target: 0.5 * (value - target).square(), model_output, data)


def discriminator_loss(model_output: dict[str, Any], data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """Return Σ_p w_p · -[e_p log D_p + (1 - e_p) log(1 - D_p)] over the places of all rows, D_p = σ(V_p).

    The critic's output is the logit (:func:`~verl_mtgrpo.credit.discriminator.classification_loss`); targets are e_p.
    Arguments and division are those of :func:`turn_value_loss`.
    """
    return _weighted(classification_loss, model_output, data)


def _weighted(
    loss_of: Callable[[Tensor, Tensor], Tensor], model_output: dict[str, Any], data: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Return the weighted sum of a loss over the places of all rows, divided by the rows of the mini-batch."""
    targets, weights = (_rows(data[name]) for name in (TARGETS, WEIGHTS))
    predicted = at_places(model_output["values"], data)
    losses = [
        (weight * loss_of(value, target)).sum()
        for value, target, weight in zip(predicted, targets, weights, strict=True)
    ]
    loss = torch.stack(losses).sum() * data["dp_size"] / data["global_batch_size"]
    learned = torch.cat([value[weight > 0] for value, weight in zip(predicted, weights, strict=True)]).detach()
    metrics: dict[str, Any] = {"critic/vf_loss": Metric(value=loss.detach(), aggregation=AggregationType.SUM)}
    if len(learned):
        metrics["critic/vpred_mean"] = float(learned.mean())
    return loss, metrics


def at_places(values: Tensor, data: Any) -> list[Tensor]:
    """Return the values at the places of each row: before its first response token, and after each of them.

    Args:
        values: of every token of each row, nested or one after the other.
        data: verl's batch with ``prompts`` and ``responses``, nested.
    """
    flat = values.values() if values.is_nested else values
    prompts, responses = (data[name].offsets().diff().tolist() for name in ("prompts", "responses"))
    rows = flat.float().split([prompt + response for prompt, response in zip(prompts, responses, strict=True)])
    return [row[prompt - 1 :] for row, prompt in zip(rows, prompts, strict=True)]


def _rows(column: Tensor) -> list[Tensor]:
    return list(column.unbind())
