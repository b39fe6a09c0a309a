"""Turn-level credit assignment: which advantage each turn of each rollout gets.

Pure functions on torch tensors: rewards, mask and group labels in, advantages out. Nothing here knows
verl, Ray or a config. Every estimator takes what verl hands to estimators and gives back what verl
expects: ``(advantages, returns)``.
"""

from verl_mtgrpo.credit.batch import TurnBatch, read_batch
from verl_mtgrpo.credit.critic import bilevel_gae, turn_gae
from verl_mtgrpo.credit.groups import Groups, group_rows, normalize_within_group
from verl_mtgrpo.credit.mt_grpo import mt_grpo, mt_grpo_v1
from verl_mtgrpo.credit.registry import (
    ESTIMATORS,
    compares_rollouts,
    divides_by_group_std,
    extra_fields,
    register_estimator,
)
from verl_mtgrpo.credit.return_to_go import gtpo, turn_reinforce_pp, turn_rloo
from verl_mtgrpo.credit.turns import Turns, segment_turns

__all__ = [
    "ESTIMATORS",
    "Groups",
    "TurnBatch",
    "Turns",
    "bilevel_gae",
    "compares_rollouts",
    "divides_by_group_std",
    "extra_fields",
    "group_rows",
    "gtpo",
    "mt_grpo",
    "mt_grpo_v1",
    "normalize_within_group",
    "read_batch",
    "register_estimator",
    "segment_turns",
    "turn_gae",
    "turn_reinforce_pp",
    "turn_rloo",
]
