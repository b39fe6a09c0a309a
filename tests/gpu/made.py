"""Make rollouts for the kit, and verl's grpo for comparison, with torch and numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

GROUP = 8


@dataclass(frozen=True)
class Rollouts:
    """The arguments of an estimator, ``(B, T)`` each, and verl's uid of each rollout.

    Attributes:
        rewards: float32, one per turn, on its last token.
        mask: int64, 1 at generated tokens.
        values: float32, what a critic said.
        index: Labels of the groups, on the host.
    """

    rewards: Tensor
    mask: Tensor
    values: Tensor
    index: np.ndarray

    def to(self, device: torch.device | str) -> Rollouts:
        """Return the same on another device; ``index`` stays on the host, as in verl."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("rewards", "mask", "values")})


def make_rollouts(rows: int, length: int, *, turns: int, seed: int = 0) -> Rollouts:
    """Make rollouts of 1 to ``turns`` turns; every second one has exactly ``turns``, and the last one no token.

    Turns and the observations between them are of uneven length; padding follows the last turn.
    """
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(1, turns + 1, (rows, 1), generator=generator)
    count[::2] = turns
    count[-1] = 0
    width = length // (2 * turns)
    edges = torch.arange(1, 2 * turns) * width + torch.randint(width, (rows, 2 * turns - 1), generator=generator)
    used = torch.arange(2 * turns - 1) < 2 * count - 1
    flips = torch.zeros(rows, length, dtype=torch.int64).scatter_add_(1, edges, used.long())
    mask = (flips.cumsum(1) + (count > 0)) % 2
    ends = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    rewards = ends * (2 * torch.rand(rows, length, generator=generator) - 1)
    values = 0.5 + 0.1 * torch.randn(rows, length, generator=generator)
    return Rollouts(rewards, mask, values, np.array([f"prompt-{row // GROUP}" for row in range(rows)], dtype=object))


def verl_grpo() -> tuple[str, Callable[[Tensor, Tensor, np.ndarray], object]]:
    """Return verl's vectorised grpo, or the copy below if verl is not installed, and which of them it is."""
    try:
        from verl.trainer.ppo.core_algos import compute_grpo_vectorized_outcome_advantage
    except ImportError:
        return "copy of verl's grpo", copied_grpo
    return "verl grpo", compute_grpo_vectorized_outcome_advantage


def copied_grpo(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Compute what ``compute_grpo_vectorized_outcome_advantage`` of verl 0.9.1 does, operation by operation.

    Source: verl 0.9.1, trainer/ppo/core_algos.py and utils/groupwise.py (Apache-2.0), for labels that are no numbers.
    """
    with torch.no_grad():
        scores = token_level_rewards.sum(dim=-1)
        # verl converts the labels at C speed if they are numbers, tries that first, and fails for uids.
        group = torch.from_numpy(np.unique(index, return_inverse=True)[1].astype(np.int64)).to(device=scores.device)
        groups = int(torch.max(group).item()) + 1
        count, total = scores.new_zeros(groups), scores.new_zeros(groups)
        count.index_add_(0, group, torch.ones_like(scores))
        mean = total.index_add_(0, group, scores) / count.clamp_min(1.0)
        centred = scores - mean[group]
        squares = torch.zeros_like(total).index_add_(0, group, centred * centred)
        std = torch.sqrt(torch.clamp(squares / (count - 1.0).clamp_min(1.0), min=0.0))
        single = count <= 1.0
        if torch.any(single):
            mean[single], std[single] = 0.0, 1.0
        advantages = ((scores - mean[group]) / (std[group] + epsilon)).unsqueeze(-1) * response_mask
        return advantages, advantages
