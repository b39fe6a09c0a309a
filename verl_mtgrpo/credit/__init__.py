"""Turn-level credit assignment: which advantage each turn of each rollout gets.

Pure functions on torch tensors: rewards, mask and group labels in, advantages out. Nothing here knows
verl, Ray or a config. Every estimator takes what verl hands to estimators and gives back what verl
expects: ``(advantages, returns)``.
"""

from verl_mtgrpo.credit.batch import TurnBatch, read_batch
from verl_mtgrpo.credit.groups import Groups, group_rows, normalize_within_group
from verl_mtgrpo.credit.mt_grpo import mt_grpo, mt_grpo_v1
from verl_mtgrpo.credit.return_to_go import gtpo, turn_reinforce_pp, turn_rloo
from verl_mtgrpo.credit.turns import Turns, segment_turns

ESTIMATORS = {function.__name__: function for function in (mt_grpo, mt_grpo_v1, turn_rloo, gtpo, turn_reinforce_pp)}
"""Every estimator by the name it is registered under in verl (``algorithm.adv_estimator``)."""

__all__ = [
    "ESTIMATORS",
    "Groups",
    "TurnBatch",
    "Turns",
    "group_rows",
    "gtpo",
    "mt_grpo",
    "mt_grpo_v1",
    "normalize_within_group",
    "read_batch",
    "segment_turns",
    "turn_reinforce_pp",
    "turn_rloo",
]
