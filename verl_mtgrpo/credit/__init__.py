"""Turn-level credit assignment: which advantage each turn of each rollout gets.

Pure functions on torch tensors: rewards, mask and group labels in, advantages out. Nothing here knows
verl, Ray or a config. Every estimator takes what verl hands to estimators and gives back what verl
expects: ``(advantages, returns)``.
"""

from verl_mtgrpo.credit.groups import Groups, group_rows, normalize_within_group
from verl_mtgrpo.credit.mt_grpo import TurnCredit, mt_grpo, mt_grpo_credit
from verl_mtgrpo.credit.turns import Turns, segment_turns

__all__ = [
    "Groups",
    "TurnCredit",
    "Turns",
    "group_rows",
    "mt_grpo",
    "mt_grpo_credit",
    "normalize_within_group",
    "segment_turns",
]
