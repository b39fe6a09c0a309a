"""Turn-level credit assignment: which advantage each turn of each rollout gets.

Pure functions on torch tensors: rewards, mask and group labels in, advantages out. Nothing here knows
verl, Ray or a config. Every estimator takes what verl hands to estimators and gives back what verl
expects: ``(advantages, returns)``.
"""

import inspect
from collections.abc import Callable

from torch import Tensor

from verl_mtgrpo.credit.batch import TurnBatch, read_batch
from verl_mtgrpo.credit.critic import bilevel_gae, turn_gae
from verl_mtgrpo.credit.groups import Groups, group_rows, normalize_within_group
from verl_mtgrpo.credit.mt_grpo import mt_grpo, mt_grpo_v1
from verl_mtgrpo.credit.return_to_go import gtpo, turn_reinforce_pp, turn_rloo
from verl_mtgrpo.credit.turns import Turns, segment_turns

ESTIMATORS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    function.__name__: function
    for function in (mt_grpo, mt_grpo_v1, turn_rloo, gtpo, turn_reinforce_pp, turn_gae, bilevel_gae)
}
"""Every estimator by the name it is registered under in verl (``algorithm.adv_estimator``).

Called with ``(token_level_rewards, response_mask, index)`` and the fields that it needs beyond these, which are its
further positional parameters (:func:`extra_fields`); its knobs are keyword-only."""


def extra_fields(name: str) -> tuple[str, ...]:
    """What the estimator needs beyond rewards, mask and group labels, such as ``values``."""
    parameters = inspect.signature(ESTIMATORS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[3:]


__all__ = [
    "ESTIMATORS",
    "Groups",
    "TurnBatch",
    "Turns",
    "bilevel_gae",
    "extra_fields",
    "group_rows",
    "gtpo",
    "mt_grpo",
    "mt_grpo_v1",
    "normalize_within_group",
    "read_batch",
    "segment_turns",
    "turn_gae",
    "turn_reinforce_pp",
    "turn_rloo",
]
