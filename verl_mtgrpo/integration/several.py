"""Sessions of several outputs (trees, roles, pairs): verl keeps one dict of scores for all, and each needs its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.errors import ConfigError

OUTPUTS = "outputs"
"""Where the ``reward_extra_info`` of a session with several outputs has a list, one entry for each."""


def refuse_teacher(config: Any, several: str, otherwise: str = "") -> None:
    """Raise ``ConfigError`` if verl's teacher is to be asked of sessions that have several outputs.

    Args:
        config: verl's whole config.
        several: Who has several outputs: "a tree has several".
        otherwise: What else the user may change.
    """
    if OmegaConf.select(config, "distillation.enabled"):
        raise ConfigError(
            f"verl asks its teacher for the last output of a session only, and {several}",
            fix=f"set distillation.enabled=False{otherwise}",
        )


def with_entries(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a reward manager says of a session: the last output's score and info, with the infos of all.

    Args:
        results: What it says of each output, ``reward_score`` and ``reward_extra_info``.
    """
    *_, last = results
    infos = [dict(result["reward_extra_info"]) for result in results]
    several = {OUTPUTS: infos} if len(results) > 1 else {}
    return {"reward_score": last["reward_score"], "reward_extra_info": {**last["reward_extra_info"], **several}}


def own_entry(info: Mapping[str, Any], number: int | None) -> dict[str, Any]:
    """Return an output's own part of the ``reward_extra_info`` of its session.

    Args:
        info: As :func:`with_entries` made it; of a session with one output it is that output's.
        number: Which output, counted from 0; None takes the last one's.
    """
    if number is not None and OUTPUTS in info:
        return dict(info[OUTPUTS][number])
    return {name: value for name, value in info.items() if name != OUTPUTS}


def mean_over_nodes(paid: Sequence[Sequence[float]], paths: Sequence[str]) -> list[list[float]]:
    """Return the turn rewards of a tree's rollouts, equal wherever they share a turn: the mean of what they were paid.

    A reward of a turn that depends on it and on what came before is the same in all of them, and is not changed. One
    that depends on what comes later, or a judge that is asked once per rollout, may say different things about the
    same turn. The turn is the same action, so it has one reward.

    Args:
        paid: For each rollout a reward per turn.
        paths: For each rollout the ids of its turns, joined by ``/``; empty for one that shares no turn.

    Returns:
        For each rollout a reward per turn.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    ids = [path.split("/") if path else [] for path in paths]
    for rewards, nodes in zip(paid, ids, strict=True):
        for reward, node in zip(rewards, nodes, strict=False):
            found[node].append(reward)
    means = {
        node: several[0] if len(set(several)) == 1 else sum(several) / len(several) for node, several in found.items()
    }
    return [
        [means[nodes[k]] if k < len(nodes) else reward for k, reward in enumerate(rewards)]
        for rewards, nodes in zip(paid, ids, strict=True)
    ]
