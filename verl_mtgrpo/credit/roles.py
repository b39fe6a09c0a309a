"""Credit for roles: one row per output of a role, and rewards that flow back to the outputs which were read.

A rewriter writes a query, an answerer reads what the search found and answers. Each **output** is a row of its own,
with the prompt and the name of its role. ``fed_by`` says which outputs were read to write it, so the outputs of a
prompt are a graph without cycles. Nobody pays the rewriter: what its query was worth shows in the answers that were
written from it. Roles that talk in turns are the other case: each role's side of a conversation is a row, no row feeds
another, and every row was paid the conversation's outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from verl_mtgrpo.credit.batch import Index, TurnBatch, discounted_sum, read_batch
from verl_mtgrpo.credit.checks import check_choice, check_number, refusal
from verl_mtgrpo.credit.groups import (
    SCALES,
    Groups,
    divided,
    group_rows,
    minus_mean_of_others,
    normalize_within_group,
    std_within_group,
)
from verl_mtgrpo.credit.registry import register_estimator
from verl_mtgrpo.errors import CreditInputError

Names = Sequence[str | None] | np.ndarray
"""One string per row; None is the empty string."""

REDUCE = {"mean": fmean, "max": max, "min": min}
COMBINE = ("sum", "apart")
GROUP_BY = ("role", "role_turn")
BASELINES = ("mean", "others")


@register_estimator(
    title="MHGPO",
    words="MHGPO: what this role's output was worth, which is what it was paid itself plus the mean (or max, min) of "
    "what the outputs that read it were worth, minus the mean of the same over the other outputs of this role for the "
    "prompt, divided by their standard deviation.",
)
def mhgpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Index,
    role: Names,
    output_id: Names,
    fed_by: Names,
    *,
    reduce: str = "mean",
    combine: str = "sum",
    turn_coef: float = 1.0,
    group_by: str = "role",
    baseline: str = "mean",
    scale: str = "std",
    epsilon: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute MHGPO's advantages: outcomes flow back to the outputs that were read, groups are (prompt, role).

    The outcome O_i of an output i that nobody read is the reward of its last turn. All other rewards are its own,
    S_i = Σ_k of them (a format penalty, a judge's rating of the query)::

        sum    V_i = c · S_i + (O_i, or the mean of V_j over the outputs j that read i)
               A_i = norm(V_i)                                                    over the outputs of i's role
        apart  P_i = O_i, or the mean of P_j over the outputs j that read i
               A_i = c · norm(S_i) + norm(P_i)                                    over the outputs of i's role

    ``sum`` is the paper's, where downstream rewards and penalties are worth something to upstream roles; ``apart`` is
    MT-GRPO's way with turn and outcome rewards: a role's own rewards train that role alone, the outcome trains all.
    With ``group_by="role_turn"`` turn k of an output is compared with turn k of the role's other outputs, and S_i is
    what turns k and later were paid, so every turn has an advantage of its own; AT-GRPO (arXiv 2510.11062) groups in
    this way.

    norm(x) = (x - mean) / (std_{N-1} + epsilon). An output that is alone in its group has the advantage 0: there is
    nothing to compare its worth with. With one role whose outputs nobody reads this is verl's ``grpo``, except that
    verl gives a row that is alone its reward. Rows of a frozen role, which have no generated token, have no advantage
    and enter no statistic; what flows through them and what they were paid reaches the outputs that they read.

    Source: MHGPO, arXiv 2506.02718, which has no public code: reductions, penalties and the normalisation are known
    from descriptions of the paper. ``combine``, ``turn_coef``, ``group_by`` and ``baseline`` are this package's.

    Args:
        token_level_rewards: ``(B, T)`` float. Rewards outside every turn are ignored, except in rows without a turn.
        response_mask: ``(B, T)``, 1 at generated tokens, 0 at observations and padding.
        index: ``(B,)`` group labels (verl's ``uid``).
        role: ``(B,)``, the role that wrote the row.
        output_id: ``(B,)``, its name within the prompt.
        fed_by: ``(B,)``, the ids of the outputs that it read directly, separated by ``/``.
        reduce: ``"mean"``, ``"max"`` or ``"min"`` over the outputs that read an output.
        combine: ``"sum"`` or ``"apart"``.
        turn_coef: c ≥ 0, the weight of an output's own rewards.
        group_by: ``"role"`` or ``"role_turn"``.
        baseline: ``"mean"``, or ``"others"``: the mean of the other outputs (leave-one-out).
        scale: ``"std"`` or ``"none"`` (do not divide).
        epsilon: Added to the standard deviation.

    Returns:
        ``(advantages, returns)``, the same ``(B, T)`` float32, exactly 0 where the mask is 0.

    Raises:
        CreditInputError: shapes differ, rewards are not finite, the mask is not 0/1, a setting is out of range, or the
            ids are no graph without cycles within each prompt (:func:`read_flow`).
    """
    check_choice("reduce", reduce, tuple(REDUCE))
    check_choice("combine", combine, COMBINE)
    check_number("turn_coef", turn_coef)
    check_choice("group_by", group_by, GROUP_BY)
    check_choice("baseline", baseline, BASELINES)
    check_choice("scale", scale, SCALES)
    check_number("epsilon", epsilon)
    batch = read_batch(token_level_rewards, response_mask, index)
    flow = read_flow(batch.groups, role, output_id, fed_by)
    paid_B1, outcome_B1, own_BK = _paid(token_level_rewards, batch, flow)
    company = _Company(batch, flow.roles, group_by == "role_turn", baseline, scale, epsilon)
    own = discounted_sum(own_BK, 1.0) if group_by == "role_turn" else own_BK.sum(dim=1, keepdim=True)
    if combine == "apart":
        advantage = turn_coef * company.norm(own) + company.norm(flow.back(outcome_B1, reduce))
    else:
        total_B1 = turn_coef * paid_B1 + (1 - turn_coef) * outcome_B1  # O_i has the weight 1
        worth_B1 = flow.back(total_B1, reduce)
        from_turn_on = worth_B1 - total_B1 + outcome_B1 + turn_coef * own
        advantage = company.norm(from_turn_on if group_by == "role_turn" else worth_B1)
    return batch.advantages(advantage.float() * batch.turns.alive_BK)


@dataclass(frozen=True)
class Flow:
    """Who wrote each row of a batch, and who read it.

    Attributes:
        roles: ``B`` labels, equal for rows of one prompt and role.
        named_B: ``(B,)`` bool, True for rows that have a name or read others: all but those that fill a batch.
        readers: For each row the rows that read it.
        order: All rows, each after those that read it.
    """

    roles: list[tuple[int, str]]
    named_B: Tensor
    readers: list[list[int]]
    order: list[int]

    @property
    def read_by_nobody_B(self) -> Tensor:
        """Return ``(B,)`` bool, True for outputs at which the outcome is paid."""
        return torch.tensor([not rows for rows in self.readers], dtype=torch.bool)

    def back(self, own_B1: Tensor, reduce: str) -> Tensor:
        """Return V_i = own_i + (V of the rows that read i, reduced to one number), ``(B, 1)``."""
        own: list[float] = own_B1[:, 0].tolist()
        worth = list(own)
        for row in self.order:
            if self.readers[row]:
                worth[row] = own[row] + REDUCE[reduce]([worth[reader] for reader in self.readers[row]])
        return own_B1.new_tensor(worth)[:, None]


def read_flow(prompts: Groups, role: Names, output_id: Names, fed_by: Names) -> Flow:
    """Find who read whom, and check that ids make sense.

    Args:
        prompts: The rows grouped by prompt.
        role: The role that wrote each row.
        output_id: Each row's name within its prompt; empty for one that nobody reads.
        fed_by: The names of the outputs that each row read, separated by ``/``.

    Raises:
        CreditInputError: a field has not one entry per row, two rows of a prompt have one id, a row read an output that
            its prompt does not have, or outputs read each other in a circle.
    """
    prompt_B: list[int] = prompts.id_B.tolist()
    for name, values in (("role", role), ("output_id", output_id), ("fed_by", fed_by)):
        if len(values) != len(prompt_B):
            raise refusal(name, f"{name} has {len(values)} entries for {len(prompt_B)} rows", expected="one per row")
    row_of: dict[tuple[int, str], int] = {}
    for row, (prompt, one) in enumerate(zip(prompt_B, output_id, strict=True)):
        if one and row_of.setdefault((prompt, one), row) != row:
            raise refusal(
                "output_id",
                f"rows {row_of[prompt, one]} and {row} of one prompt are both called {one!r}",
                expected="an id of its own for every output of a prompt",
            )
    readers: list[list[int]] = [[] for _ in prompt_B]
    for row, (prompt, ids) in enumerate(zip(prompt_B, fed_by, strict=True)):
        for one in dict.fromkeys(str(ids).split("/") if ids else ()):
            if (prompt, one) not in row_of:
                raise _unknown(one, row, fed_by, output_id)
            readers[row_of[prompt, one]].append(row)
    roles = [(prompt, str(name or "")) for prompt, name in zip(prompt_B, role, strict=True)]
    named = torch.tensor([bool(one or ids) for one, ids in zip(output_id, fed_by, strict=True)], dtype=torch.bool)
    return Flow(roles, named, readers, _after_readers(readers, output_id))


def _after_readers(readers: list[list[int]], output_id: Names) -> list[int]:
    """Return all rows, each after those that read it; raise ``CreditInputError`` if there is a circle."""
    waiting = [len(rows) for rows in readers]
    sources: list[list[int]] = [[] for _ in readers]
    for row, rows in enumerate(readers):
        for reader in rows:
            sources[reader].append(row)
    order = [row for row, left in enumerate(waiting) if not left]
    for row in order:  # grows while it is walked through
        for source in sources[row]:
            waiting[source] -= 1
            if not waiting[source]:
                order.append(source)
    if len(order) < len(readers):
        left = [str(output_id[row]) for row, others in enumerate(waiting) if others]
        raise refusal(
            "fed_by",
            f"{len(left)} outputs read each other in a circle or are read in one: {', '.join(left[:10])}",
            expected="outputs that read earlier ones only",
        )
    return order


def _unknown(one: str, row: int, fed_by: Names, output_id: Names) -> CreditInputError:
    elsewhere = [other for other, name in enumerate(output_id) if name == one]
    where = f", but row {elsewhere[0]} of another prompt is called so" if elsewhere else ""
    return refusal(
        "fed_by",
        f"row {row} was fed by {fed_by[row]!r}, and its prompt has no output {one!r}{where}",
        expected="output_ids of the same prompt, separated by '/'",
        fix="leave out outputs whose rows have left the batch",
    )


def _paid(token_level_rewards: Tensor, batch: TurnBatch, flow: Flow) -> tuple[Tensor, Tensor, Tensor]:
    """Return all that each row was paid and its outcome, ``(B, 1)`` each, and its turns' other rewards, ``(B, K)``.

    In double precision: what is equal on paper stays so closely equal that dividing by its spread does not show it.
    """
    turns, some_B1, reward_BK = batch.turns, batch.nonempty_B1, batch.reward_BK.double()
    last_B1, named_B1 = (flags.to(some_B1.device)[:, None] for flags in (flow.read_by_nobody_B, flow.named_B))
    frozen_B1 = token_level_rewards.detach().double().sum(dim=1, keepdim=True).masked_fill(some_B1 | ~named_B1, 0.0)
    if not torch.isfinite(frozen_B1).all():
        raise refusal(
            "token_level_rewards",
            "token_level_rewards is NaN or infinite in a row of a frozen role",
            fix="check the reward function's values for these rows",
        )
    paid_B1 = reward_BK.sum(dim=1, keepdim=True) + frozen_B1
    outcome_B1 = batch.outcome_B1.double().where(some_B1, paid_B1).masked_fill(~last_B1, 0.0)
    return paid_B1, outcome_B1, reward_BK.masked_fill(turns.last_BK & last_B1, 0.0)


@dataclass(frozen=True)
class _Company:
    """The outputs, or their turns, that are compared with each other, and how."""

    batch: TurnBatch
    roles: list[tuple[int, str]]
    by_turn: bool
    baseline: str
    scale: str
    epsilon: float

    def norm(self, values: Tensor) -> Tensor:
        """Normalise the worth of outputs, ``(B, 1)``, or of turns, ``(B, K)``, in their groups; 0 for one alone."""
        valid = self.batch.turns.alive_BK if self.by_turn else self.batch.nonempty_B1
        values, valid_N1, (rows, columns) = values.expand(valid.shape), valid.reshape(-1, 1), valid.shape
        labels = [(role, turn) for role in self.roles for turn in range(columns)]
        groups = group_rows(labels, rows * columns, values.device)
        values_N1 = values.reshape(-1, 1)
        if self.baseline == "mean":
            normed_N1 = normalize_within_group(values_N1, valid_N1, groups, scale=self.scale, epsilon=self.epsilon)
        else:
            normed_N1, _ = minus_mean_of_others(values_N1, valid_N1, groups)
            if self.scale == "std":
                normed_N1 = divided(normed_N1, std_within_group(values_N1, valid_N1, groups) + self.epsilon)
        alone_N1 = groups.to_rows(groups.sum(valid_N1.float())) < 2
        return normed_N1.masked_fill(alone_N1, 0.0).view(rows, columns)
