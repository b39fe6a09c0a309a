"""Describe small multi-turn tasks with a known policy; compute exact values and gradients, and sample rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from verl_mtgrpo.errors import CreditInputError


@dataclass(frozen=True)
class Action:
    """One thing that the policy may write in a turn.

    Attributes:
        name: Its name, for people.
        logit: The policy is the softmax of the logits of a state's actions.
        reward: Paid on the turn's last token.
        next: The state of the next turn; None: the rollout ends here.
        tokens: The length of the turn. The first token decides; the others follow with probability 1.
    """

    name: str
    logit: float = 0.0
    reward: float = 0.0
    next: str | None = None
    tokens: int = 1


@dataclass(frozen=True)
class Rollouts:
    """Sampled rollouts as verl passes them on, and the actions that were taken.

    Attributes:
        rewards: ``(B, T)`` token-level rewards.
        mask: ``(B, T)`` int64 response mask; one observation token between turns.
        index: ``(B,)`` int64 group labels.
        values: ``(B, T)`` exact values: V(state) at a turn's first token, Q(state, action) after it.
        values_after: ``(B, T)``, Q(state, action) at all tokens of the turn.
        state_BK: ``(B, K)`` int64, -1 where the rollout has no turn.
        action_BK: ``(B, K)`` int64, -1 where the rollout has no turn.
        start_BK: ``(B, K)`` int64, position of each turn's first token.
        node_path: The ids of each row's turns; None: no two rows share a turn.
        old_log_probs: ``(B, T)``, log π(action | state) at a turn's first token, 0 elsewhere.
        generated: The number of tokens that were generated; those of a turn that rows share count once.
    """

    rewards: Tensor
    mask: Tensor
    index: Tensor
    values: Tensor
    values_after: Tensor
    state_BK: Tensor
    action_BK: Tensor
    start_BK: Tensor
    node_path: Sequence[str | None]
    old_log_probs: Tensor
    generated: int


@dataclass(frozen=True)
class Process:
    """A task and the policy at which gradients are taken.

    Attributes:
        name: A short name, for tables.
        about: A description in one sentence.
        start: The state of the first turn.
        states: The actions of each state. A rollout may reach a state only once: unroll turns.
    """

    name: str
    about: str
    start: str
    states: Mapping[str, Sequence[Action]]

    @cached_property
    def order(self) -> list[str]:
        """Return the states that are reachable from the start, each before those that follow it."""
        done: list[str] = []
        self._visit(self.start, done, on_path=())
        return done[::-1]

    @property
    def logits(self) -> Tensor:
        """Return the parameters θ of the policy, ``(states, actions)`` float64, -inf where there is no action."""
        return self._table([[action.logit for action in self.states[s]] for s in self.order], -torch.inf)

    @property
    def policy(self) -> Tensor:
        """Return π(a | s), ``(states, actions)`` float64."""
        return self.logits.softmax(dim=1)

    @property
    def max_turns(self) -> int:
        """Return the largest number of turns that a rollout can have."""
        depth: dict[str, int] = {}
        for state in reversed(self.order):
            depth[state] = 1 + max((depth[a.next] for a in self.states[state] if a.next), default=0)
        return depth[self.start]

    def values(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return V(s), ``(states,)``, and Q(s, a), ``(states, actions)``: expected reward to come, differentiable."""
        policy = logits.softmax(dim=1)
        value: dict[str, Tensor] = {}
        rows: dict[str, Tensor] = {}
        for n, state in reversed(list(enumerate(self.order))):
            to_come = [a.reward + (value[a.next] if a.next else 0.0) for a in self.states[state]]
            row = torch.stack([torch.as_tensor(x, dtype=logits.dtype) for x in to_come])
            value[state] = (policy[n, : len(row)] * row).sum()
            rows[state] = torch.nn.functional.pad(row, (0, logits.shape[1] - len(row)))
        return torch.stack([value[s] for s in self.order]), torch.stack([rows[s] for s in self.order])

    def exact_gradient(self) -> Tensor:
        """Return ∇_θ E[Σ_k R_k], ``(states, actions)`` float64, by enumeration of all rollouts, without sampling."""
        with torch.enable_grad():
            logits = self.logits.requires_grad_()
            values, _ = self.values(logits)
            (gradient,) = torch.autograd.grad(values[0], logits)
        return gradient

    def sample(self, groups: int, size: int, generator: torch.Generator) -> Rollouts:
        """Sample ``groups`` groups of ``size`` rollouts."""
        rows, turns = groups * size, self.max_turns
        cdf = self.policy.cumsum(dim=1)
        follows = self._follows()
        state_BK, action_BK = torch.full((2, rows, turns), -1)
        state = torch.zeros(rows, dtype=torch.int64)
        for k in range(turns):
            alive = state >= 0
            draw = torch.rand(rows, 1, generator=generator, dtype=cdf.dtype)
            action = (cdf[state] < draw).sum(dim=1).clamp(max=cdf.shape[1] - 1)
            state_BK[:, k], action_BK[:, k] = state, action.where(alive, -1)
            state = follows[state, action].where(alive, -1)
        return self._as_tokens(state_BK, action_BK, torch.arange(rows) // size, [None] * rows, state_BK >= 0)

    def sample_trees(self, groups: int, size: int, generator: torch.Generator, *, branching_turns: int) -> Rollouts:
        """Sample a tree of rollouts for each of ``groups`` groups; every leaf is a row.

        At the first ``branching_turns`` turns, every state gets ``size`` children, each of which is sampled from the
        policy; later turns get one. 1: groups of chains.
        """
        cdf, follows = self.policy.cumsum(dim=1), self._follows()
        state, group, parent = torch.zeros(groups, dtype=torch.int64), torch.arange(groups), torch.arange(groups)
        levels: list[tuple[Tensor, Tensor, Tensor]] = []  # state, action and parent of each node of a turn
        leaves: list[tuple[Tensor, Tensor]] = []  # node and group
        for k in range(self.max_turns):
            children = size if k < branching_turns else 1
            state, group, parent = (values.repeat_interleave(children) for values in (state, group, parent))
            draw = torch.rand(len(state), 1, generator=generator, dtype=cdf.dtype)
            action = (cdf[state] < draw).sum(dim=1).clamp(max=cdf.shape[1] - 1)
            levels.append((state, action, parent))
            later = follows[state, action]
            node, goes_on = torch.arange(len(state)), later >= 0
            leaves.append((node[~goes_on], group[~goes_on]))
            state, group, parent = later[goes_on], group[goes_on], node[goes_on]
        state_BK, action_BK, node_BK, index = _rows(levels, leaves)
        paths = ["/".join(f"{k}.{n}" for k, n in enumerate(row) if n >= 0) for row in node_BK.tolist()]
        return self._as_tokens(state_BK, action_BK, index, paths, _first_rows(node_BK))

    def _as_tokens(
        self, state_BK: Tensor, action_BK: Tensor, index: Tensor, node_path: Sequence[str | None], once_BK: Tensor
    ) -> Rollouts:
        alive_BK = state_BK >= 0
        length_BK = self._table_of("tokens", 0).long()[state_BK, action_BK] * alive_BK
        reward_BK = self._table_of("reward", 0.0)[state_BK, action_BK] * alive_BK
        start_BK = (length_BK + alive_BK.long()).cumsum(dim=1) - length_BK - alive_BK.long()
        rows = len(state_BK)
        value_S, value_SA = (x.detach() for x in self.values(self.logits))
        last = int((start_BK + length_BK).max())
        token = torch.arange(last)
        rewards, values, after, log_probs = torch.zeros(4, rows, last)
        mask = torch.zeros(rows, last, dtype=torch.int64)
        for k in range(state_BK.shape[1]):
            start, end = start_BK[:, k, None], (start_BK + length_BK)[:, k, None]
            inside = (token >= start) & (token < end)
            mask += inside
            rewards += (inside & (token == end - 1)) * reward_BK[:, k, None]
            first = token == start
            q_B1 = value_SA[state_BK[:, k], action_BK[:, k]][:, None]
            values = value_S[state_BK[:, k], None].where(first, q_B1).float().where(inside, values)
            after = q_B1.float().where(inside, after)
            chosen = self.policy.log()[state_BK[:, k], action_BK[:, k], None].float()
            log_probs = chosen.where(inside & first, log_probs)
        return Rollouts(
            rewards,
            mask,
            index,
            values,
            after,
            state_BK,
            action_BK,
            start_BK,
            node_path=node_path,
            old_log_probs=log_probs,
            generated=int((length_BK * once_BK).sum()),
        )

    def _follows(self) -> Tensor:
        """Return the number of the state after each action, -1 where the rollout ends, ``(states, actions)``."""
        number = {state: n for n, state in enumerate(self.order)}
        rows = [[number[a.next] if a.next else -1 for a in self.states[s]] for s in self.order]
        return self._table(rows, -1).long()

    def _table_of(self, attribute: str, fill: float) -> Tensor:
        return self._table([[float(getattr(a, attribute)) for a in self.states[s]] for s in self.order], fill)

    def _table(self, rows: Sequence[Sequence[float]], fill: float) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.float64)

    def _visit(self, state: str, done: list[str], on_path: tuple[str, ...]) -> None:
        if state in on_path:
            raise CreditInputError(
                f"process {self.name!r}: state {state!r} can be reached twice in one rollout "
                f"({' -> '.join((*on_path, state))})",
                fix="give each turn its own state",
            )
        if state in done:
            return
        if not self.states.get(state):
            raise CreditInputError(
                f"process {self.name!r}: state {state!r} has no actions",
                fix=f"known states: {', '.join(self.states)}",
            )
        for action in self.states[state]:
            if action.next is not None:
                self._visit(action.next, done, (*on_path, state))
        done.append(state)


def _rows(
    levels: Sequence[tuple[Tensor, Tensor, Tensor]], leaves: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Go back from each leaf: states, actions and nodes of its turns, ``(B, K)`` each, -1 behind it, and its group."""
    parts: list[tuple[Tensor, Tensor]] = []
    for turn, (leaf, group) in enumerate(leaves):
        row = torch.full((3, len(leaf), len(levels)), -1)
        node = leaf
        for k in range(turn, -1, -1):
            state, action, parent = levels[k]
            row[:, :, k] = torch.stack([state[node], action[node], node])
            node = parent[node]
        parts.append((row, group))
    rows, index = torch.cat([row for row, _ in parts], dim=1), torch.cat([group for _, group in parts])
    order = index.argsort(stable=True)
    state_BK, action_BK, node_BK = rows[:, order]
    return state_BK, action_BK, node_BK, index[order]


def _first_rows(node_BK: Tensor) -> Tensor:
    """Return ``(B, K)`` bool, True at one row of each node of a turn."""
    once_BK = torch.zeros_like(node_BK, dtype=torch.bool)
    for k, node_B in enumerate(node_BK.unbind(1)):
        row_B = torch.arange(len(node_B))[node_B >= 0]
        one_N = torch.full((int(node_B.max()) + 1,), -1) if len(row_B) else row_B
        one_N[node_B[row_B]] = row_B
        once_BK[one_N[one_N >= 0], k] = True
    return once_BK
