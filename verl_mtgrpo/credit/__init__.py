"""Assign credit turn by turn: which advantage does each turn of each rollout get?

Everything here is a pure function of torch tensors: rewards, mask and group labels in, advantages out. Nothing knows a
trainer, a cluster or a config file, so the equations can be read, tested and used by themselves.

From tokens to turns, and back
------------------------------
A batch of B rollouts arrives as ``(B, T)`` tensors: ``token_level_rewards`` and ``response_mask``, which is 1 where the
model generated a token and 0 at tool results and padding. ``index`` has one label per rollout; rollouts of the same
prompt share it. ``mt_grpo`` turns that into advantages in five steps, and each step is one file:

1. **Where does the mask change?** (``runs.py``) The mask is a sequence of runs of equal values. Their first tokens are
   found in one pass over the batch; after that everything is a sum over runs, or a value for each run.
2. **Which tokens are one turn?** (``turns.py``) A turn is a run of 1s. ``Turns`` knows how many each rollout has, and
   goes both ways: ``sum_over_turns`` makes a ``(B, K)`` table out of ``(B, T)`` tokens, and ``spread`` gives each token
   the value of its turn. K is the largest number of turns; ``alive_BK`` says which cells of the table exist.
3. **Which rollouts are compared?** (``groups.py``) Those with the same label are a group. Means and standard deviations
   are taken per group and per column of the table, over the cells that are marked as valid.
4. **What was each turn paid?** (``batch.py``) ``read_batch`` checks the input, does steps 1 to 3 and returns a
   ``TurnBatch``: turns, groups and the reward R_{i,k} of every turn. The reward of the last turn is the outcome.
5. **What is the advantage?** (``mt_grpo.py``, ``return_to_go.py``, ``critic.py``, ``turn_td.py``) The equation itself:
   a few lines on ``(B, K)`` tables, below a docstring with the formula, its special cases and its source.
   ``batch.advantages`` hands the result to the tokens.

Rollouts that branch share turns. ``forest.py`` finds these from ``node_path``: every shared turn is one node, with
siblings and children, and the estimators of ``tree.py`` and ``leaves.py`` are equations over nodes. Without paths they
are those over rollouts.

Roles that read each other's outputs are in ``roles.py``: an output is a row, and what it was worth comes back from the
rows that read it.

``dense.py`` makes rewards of turns out of the policies' own log-probs, for any of these estimators; ``pairs.py`` has
those for pairs of actions, an expert's beside the policy's own, and ``discriminator.py`` teaches a critic to tell these
apart.

Beside this path: ``checks.py`` refuses settings that are out of range, ``registry.py`` holds one record per estimator
(:class:`~.registry.Estimator`), and ``policy_loss.py`` is a loss that clips whole turns instead of tokens.

Names end in the axes of the tensor: ``_B`` rollouts, ``_K`` turns, ``_T`` tokens, ``_G`` groups, ``_R`` runs, ``_N``
nodes of a forest.
"""

from verl_mtgrpo.credit.batch import TurnBatch, read_batch
from verl_mtgrpo.credit.forest import Forest, read_forest
from verl_mtgrpo.credit.groups import Groups, group_rows, normalize_within_group
from verl_mtgrpo.credit.mt_grpo import mt_grpo, mt_grpo_v1
from verl_mtgrpo.credit.registry import ESTIMATORS, Estimator, method_title, register_estimator
from verl_mtgrpo.credit.return_to_go import gtpo, turn_reinforce_pp, turn_rloo
from verl_mtgrpo.credit.turns import Turns, segment_turns

# isort: split
# Estimators are listed in the order of their imports; those with a critic come last, and then those on trees.
from verl_mtgrpo.credit.critic import bilevel_gae, turn_gae
from verl_mtgrpo.credit.turn_td import turn_td

# isort: split
from verl_mtgrpo.credit.tree import mt_grpo_tree, turn_gae_tree, turn_rloo_tree

# isort: split
from verl_mtgrpo.credit.leaves import arpo, at2po, tree_grpo

# isort: split
from verl_mtgrpo.credit.pairs import pair_dpo, pair_rloo

# isort: split
from verl_mtgrpo.credit.roles import mhgpo

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Forest",
    "Groups",
    "TurnBatch",
    "Turns",
    "arpo",
    "at2po",
    "bilevel_gae",
    "group_rows",
    "gtpo",
    "method_title",
    "mhgpo",
    "mt_grpo",
    "mt_grpo_tree",
    "mt_grpo_v1",
    "normalize_within_group",
    "pair_dpo",
    "pair_rloo",
    "read_batch",
    "read_forest",
    "register_estimator",
    "segment_turns",
    "tree_grpo",
    "turn_gae",
    "turn_gae_tree",
    "turn_reinforce_pp",
    "turn_rloo",
    "turn_rloo_tree",
    "turn_td",
]
