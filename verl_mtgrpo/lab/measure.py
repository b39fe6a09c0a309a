"""Measure bias, variance and direction of the gradients that follow from an estimator's advantages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_mtgrpo.lab.process import Process, Rollouts

Credit = Callable[[Rollouts], Tensor]
"""Advantages ``(B, T)`` of sampled rollouts."""

_CHUNK = 1 << 16  # rollouts at a time
_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Measurement:
    """The measurements of one estimator in one process with one group size.

    With g the gradient from one group, m its mean over groups and g* the exact gradient. Norms are Euclidean
    over all parameters, relative to |g*|.

    Attributes:
        scale: ⟨m, g*⟩ / |g*|², the length of the mean gradient along the exact one. It is 1 without bias; group
            means that include the rollout itself shrink it to 1 - 1/G, and dividing by a std changes it freely.
        bias: |m - g*|.
        direction_bias: |m - scale·g*| / scale, the part that no learning rate can correct.
        noise_in_bias: Half-width of the confidence interval of ``bias``: the bias that sampling alone would show.
        biased: True if some component of m - g* is outside its 99 % interval (all components together).
        direction_biased: True if some component of m - scale·g* is.
        cosine: The cosine of the angle between m and g*.
        variance: E|g - m|² / |g*|².
        noise: E|g - m|² / (scale² |g*|²), the variance at equal step length along g*.
        groups: The number of sampled groups.
        tokens: The mean number of tokens that are generated for a group; a turn that rollouts share counts once.
    """

    scale: float
    bias: float
    direction_bias: float
    noise_in_bias: float
    biased: bool
    direction_biased: bool
    cosine: float
    variance: float
    noise: float
    groups: int
    tokens: float


def measure(
    process: Process,
    estimators: dict[str, Credit],
    *,
    size: int,
    groups: int,
    branching_turns: int = 0,
    seed: int = 0,
    on_groups: Callable[[int], object] = lambda _: None,
) -> dict[str, Measurement]:
    """Measure estimators on the same ``groups`` groups of ``size`` rollouts, or on as many trees.

    The gradient of a group is 1/G Σ_i Σ_k A_{i,k} ∇ log π(turn k of i), that of a policy-gradient step that
    sums over tokens. Estimators that use statistics of the batch see up to 65,536 rollouts at once.

    ``branching_turns``: 0 for chains; else each state of the first so many turns gets ``size`` children, and G is the
    number of leaves.
    """
    generator = torch.Generator().manual_seed(seed)
    exact = process.exact_gradient().flatten()
    sums = dict.fromkeys(estimators, (torch.zeros_like(exact), torch.zeros_like(exact)))
    done, tokens = 0, 0.0
    while done < groups:
        count = min(groups - done, max(1, _CHUNK // size ** max(branching_turns, 1)))
        if branching_turns:
            rollouts = process.sample_trees(count, size, generator, branching_turns=branching_turns)
        else:
            rollouts = process.sample(count, size, generator)
        tokens += rollouts.generated
        for name, credit in estimators.items():
            gradients = group_gradients(process, rollouts, credit(rollouts))
            first, second = sums[name]
            sums[name] = (first + gradients.sum(dim=0), second + gradients.square().sum(dim=0))
        done += count
        on_groups(count)
    return {name: _compare(*sums[name], exact, done, tokens / done) for name in estimators}


def group_gradients(process: Process, rollouts: Rollouts, advantages: Tensor) -> Tensor:
    """Return the gradient from each group, ``(groups, states · actions)`` float64.

    ∇ log π(a | s) with respect to the logits of s is onehot(a) - π(· | s).
    """
    policy = process.policy
    states, actions = policy.shape
    size_G = torch.bincount(rollouts.index)
    groups = len(size_G)
    alive = rollouts.state_BK >= 0
    first = rollouts.start_BK.clamp(max=advantages.shape[1] - 1)
    advantage = (advantages.double().gather(1, first) / size_G[rollouts.index][:, None])[alive]
    cell = (rollouts.index[:, None] * states + rollouts.state_BK)[alive]
    chosen = torch.zeros(groups * states * actions, dtype=torch.float64)
    chosen.index_add_(0, cell * actions + rollouts.action_BK[alive], advantage)
    visits = torch.zeros(groups * states, dtype=torch.float64).index_add_(0, cell, advantage)
    expected = visits.view(groups, states, 1) * policy
    return (chosen.view(groups, states, actions) - expected).flatten(1)


def _compare(total: Tensor, total_of_squares: Tensor, exact: Tensor, groups: int, tokens: float) -> Measurement:
    mean = total / groups
    variance = (total_of_squares / groups - mean.square()).clamp(min=0) * groups / max(groups - 1, 1)
    error = (variance / groups).sqrt()
    length = exact.norm()
    scale = mean @ exact / length.square()
    # 99 % for all components together: Bonferroni over those that vary.
    free = int((error > 0).sum().clamp(min=1))
    quantile = torch.special.ndtri(torch.tensor(1 - (1 - _CONFIDENCE) / 2 / free, dtype=torch.float64))
    # Components that never vary agree only up to rounding.
    allowed = quantile * error + 1e-6 * length
    off, off_direction = mean - exact, mean - scale * exact
    return Measurement(
        scale=float(scale),
        bias=float(off.norm() / length),
        direction_bias=float(off_direction.norm() / (scale * length)),
        noise_in_bias=float(allowed.norm() / length),
        biased=bool((off.abs() > allowed).any()),
        direction_biased=bool((off_direction.abs() > allowed).any()),
        cosine=float(torch.cosine_similarity(mean, exact, dim=0)),
        variance=float(variance.sum() / length.square()),
        noise=float(variance.sum() / (scale * length).square()),
        groups=groups,
        tokens=tokens,
    )
