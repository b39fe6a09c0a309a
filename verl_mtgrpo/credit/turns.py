"""From tokens to turns and back.

A **turn** is a maximal run of 1s in ``response_mask``: the tokens the model generated between two
observations. Notation used in this folder (suffix = axes): ``_B`` rollouts, ``_K`` turns, ``_T``
tokens. K is the largest number of turns in the batch; turn k of a rollout with fewer turns does not
exist, which ``Turns.alive_BK`` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verl_mtgrpo.errors import CreditInputError


@dataclass(frozen=True)
class Turns:
    """Where the turns of a batch are.

    Attributes:
        token_turn_BT: ``(B, T)`` int64. Index of the turn a generated token belongs to, counted from 0;
            K (one past the last) at tokens the model did not generate.
        count_B: ``(B,)`` int64. Number of turns K_i of each rollout, 0 for rows without generated tokens.
        max_turns: K, the largest ``count_B``.
    """

    token_turn_BT: Tensor
    count_B: Tensor
    max_turns: int

    @property
    def alive_BK(self) -> Tensor:
        """``(B, K)`` bool, True where the rollout has a turn k (K_i > k, k from 0)."""
        return self._index_K() < self.count_B[:, None]

    @property
    def last_BK(self) -> Tensor:
        """``(B, K)`` bool, True at each rollout's last turn."""
        return self._index_K() == self.count_B[:, None] - 1

    def sum_rewards(self, token_level_rewards: Tensor) -> Tensor:
        """Sum ``(B, T)`` token rewards inside each turn: R_{i,k} as ``(B, K)`` float32, 0 where no turn.

        Rewards on tokens outside every turn (observations, padding) belong to no turn and are left out.
        """
        sums = token_level_rewards.new_zeros(
            (len(self.count_B), self.max_turns + 1), dtype=torch.float32
        )  # the extra column collects what lies outside every turn
        sums.scatter_add_(1, self.token_turn_BT, token_level_rewards.float())
        return sums[:, : self.max_turns]

    def spread(self, values_BK: Tensor) -> Tensor:
        """Give every token of turn k its rollout's ``values_BK[:, k]``: ``(B, T)``, exactly 0 elsewhere."""
        padded = torch.nn.functional.pad(values_BK, (0, 1))
        return padded.gather(1, self.token_turn_BT)

    def _index_K(self) -> Tensor:
        return torch.arange(self.max_turns, device=self.count_B.device)


def segment_turns(response_mask: Tensor) -> Turns:
    """Find the turns of each rollout.

    ``[1 1 0 0 1 1 1 0]`` has two turns, tokens [0, 2) and [4, 7). Turns come from the mask alone: a
    turn whose reward is 0 is still a turn, and where a turn's reward lies does not matter.

    Args:
        response_mask: ``(B, T)``, 1 (True) at tokens the model generated, 0 at observations and padding.

    Returns:
        The turns, on the mask's device. Costs one host synchronisation (the number of turns).

    Raises:
        CreditInputError: the mask is not two-dimensional or holds something other than 0 and 1.
    """
    if response_mask.dim() != 2:
        raise CreditInputError(
            f"response_mask has shape {tuple(response_mask.shape)}, expected (rollouts, response_length)"
        )
    mask = response_mask != 0
    starts = mask.clone()
    starts[:, 1:] &= ~mask[:, :-1]
    turn_number = starts.cumsum(dim=1)  # 1, 1, 1, 1, 2, 2, 2, 2 for the example above
    count = turn_number[:, -1] if mask.shape[1] else mask.new_zeros(len(mask), dtype=torch.int64)
    max_turns, bad = _to_host(
        count.max() if len(count) else count.sum(),
        (mask & (response_mask != 1)).sum(),
    )
    if bad:
        raise CreditInputError(
            f"response_mask holds {bad} values other than 0 and 1; expected 1 at generated tokens and 0 at "
            "observations and padding (pass verl's response_mask, not attention or loss weights)"
        )
    token_turn = torch.where(mask, turn_number - 1, max_turns)
    return Turns(token_turn_BT=token_turn, count_B=count, max_turns=max_turns)


def _to_host(*scalars: Tensor) -> list[int]:
    """Fetch several integer scalars in one synchronisation."""
    return torch.stack(scalars).tolist()
