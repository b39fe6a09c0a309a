"""Find the turns of each rollout, and go from tokens to turns and back.

A **turn** is a maximal run of 1s in ``response_mask``: the tokens the model generated between two
observations. K is the largest number of turns in the batch. A rollout with fewer turns does not have a
turn K: ``Turns.alive_BK`` says which turns exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verl_mtgrpo.credit.runs import find_runs, repeat_runs, run_lengths, sum_runs
from verl_mtgrpo.errors import CreditInputError


@dataclass(frozen=True)
class Turns:
    """The turns of a batch, and their tokens.

    The mask is a sequence of **runs** of equal values (:mod:`~verl_mtgrpo.credit.runs`): turns, and between
    them observations and padding.

    Attributes:
        run_start_R: ``(R,)`` int64. First token of each run, counted through all rows (b·T + t).
        run_row_R: ``(R,)`` int64. The row each run lies in.
        run_turn_R: ``(R,)`` int64. The number of the turn, from 0, if the run is one; K (one past the last)
            for runs that the model did not generate.
        count_B: ``(B,)`` int64. Number of turns K_i of each rollout, 0 for rows without generated tokens.
        max_turns: K, the largest ``count_B``.
        response_length: T.
    """

    run_start_R: Tensor
    run_row_R: Tensor
    run_turn_R: Tensor
    count_B: Tensor
    max_turns: int
    response_length: int

    @property
    def alive_BK(self) -> Tensor:
        """Return ``(B, K)`` bool, True where the rollout has a turn k (K_i > k, k from 0)."""
        return self._index_K() < self.count_B[:, None]

    @property
    def last_BK(self) -> Tensor:
        """Return ``(B, K)`` bool, True at each rollout's last turn."""
        return self._index_K() == self.count_B[:, None] - 1

    @property
    def tokens_BK(self) -> Tensor:
        """Return ``(B, K)`` int64, the number of generated tokens of each turn, 0 where there is no turn."""
        return self._table(run_lengths(self.run_start_R, self._size))

    @property
    def first_BK(self) -> Tensor:
        """Return ``(B, K)`` int64, the position of each turn's first token in its row, 0 where there is no turn."""
        return self._table(self.run_start_R % max(self.response_length, 1))

    @property
    def token_turn_BT(self) -> Tensor:
        """Return ``(B, T)`` int64, the turn of each generated token, from 0; K at tokens that were not generated."""
        return self._to_tokens(self.run_turn_R)

    def sum_over_turns(self, values_BT: Tensor) -> Tensor:
        """Sum ``(B, T)`` numbers over the tokens of each turn: ``(B, K)`` float32, 0 where there is no turn.

        Tokens outside every turn (observations, padding) are in no sum.
        """
        if not self.max_turns:
            return values_BT.new_zeros((len(self.count_B), 0), dtype=torch.float32)
        return self._table(sum_runs(values_BT.float(), self.run_start_R))

    def spread(self, values_BK: Tensor) -> Tensor:
        """Give every token of turn k its rollout's ``values_BK[:, k]``: ``(B, T)``, exactly 0 elsewhere."""
        padded = torch.nn.functional.pad(values_BK, (0, 1))
        return self._to_tokens(padded[self.run_row_R, self.run_turn_R])

    def at_first(self, values_BT: Tensor) -> Tensor:
        """Return the value at each turn's first token, ``(B, K)`` of the same type, 0 where there is no turn."""
        return self._table(values_BT.reshape(-1)[self.run_start_R])

    def at_last(self, values_BT: Tensor) -> Tensor:
        """Return the value at each turn's last token, ``(B, K)`` of the same type, 0 where there is no turn."""
        return self._table(values_BT.reshape(-1)[self.run_start_R + run_lengths(self.run_start_R, self._size) - 1])

    @property
    def _size(self) -> int:
        return len(self.count_B) * self.response_length

    def _table(self, values_R: Tensor) -> Tensor:
        """Put the value of each turn's run into a ``(B, K)`` table, 0 where there is no turn."""
        table = values_R.new_zeros((len(self.count_B), self.max_turns + 1))
        table[self.run_row_R, self.run_turn_R] = values_R  # the last column takes the runs that are not turns
        return table[:, : self.max_turns].contiguous()

    def _to_tokens(self, values_R: Tensor) -> Tensor:
        return repeat_runs(values_R, self.run_start_R, (len(self.count_B), self.response_length))

    def _index_K(self) -> Tensor:
        return torch.arange(self.max_turns, device=self.count_B.device)


def segment_turns(response_mask: Tensor) -> Turns:
    """Find the turns of each rollout.

    ``[1 1 0 0 1 1 1 0]`` has two turns, tokens [0, 2) and [4, 7). Turns come from the mask alone: a
    turn whose reward is 0 is still a turn, and where a turn's reward lies does not matter.

    Args:
        response_mask: ``(B, T)``, 1 (True) at tokens the model generated, 0 at observations and padding.

    Returns:
        The turns, on the mask's device. Costs one host synchronisation.

    Raises:
        CreditInputError: the mask is not two-dimensional or holds something other than 0 and 1.
    """
    return segment_turns_and_fetch(response_mask)[0]


def segment_turns_and_fetch(response_mask: Tensor, *scalars: Tensor) -> tuple[Turns, list[int]]:
    """Do what :func:`segment_turns` does, and fetch integer scalar tensors in the same host synchronisation."""
    if response_mask.dim() != 2:
        raise CreditInputError(
            f"response_mask has shape {tuple(response_mask.shape)}",
            expected="(rollouts, response_length)",
        )
    rows, length = response_mask.shape
    if not response_mask.numel():
        nothing = torch.zeros(0, dtype=torch.int64, device=response_mask.device)
        return Turns(nothing, nothing, nothing, nothing.new_zeros(rows), 0, length), [int(s) for s in scalars]
    start_R, max_turns, bad, fetched = find_runs(response_mask, *scalars)
    if bad:
        _refuse(response_mask)
    row_R = start_R.div(length, rounding_mode="floor")
    generated_R = response_mask.reshape(-1)[start_R].bool()
    count_B = start_R.new_zeros(rows).index_add_(0, row_R, generated_R.long())
    if max_turns is None:
        max_turns = int(count_B.max())
    turns_before_B = count_B.cumsum(0) - count_B  # turns of the rows above
    turn_R = generated_R.cumsum(0) - 1 - turns_before_B[row_R]
    return Turns(start_R, row_R, turn_R.where(generated_R, max_turns), count_B, max_turns, length), fetched


def _refuse(response_mask: Tensor) -> None:
    bad = int(((response_mask != 0) & (response_mask != 1)).sum())
    raise CreditInputError(
        f"response_mask holds {bad} values other than 0 and 1",
        expected=(
            "1 at generated tokens and 0 at observations and padding (not an attention mask, nor weights of a loss)"
        ),
    )
