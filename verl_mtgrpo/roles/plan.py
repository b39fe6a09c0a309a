"""Where a prompt forks into branches: the three ways of MHGPO (arXiv 2506.02718) to sample for several roles."""

from __future__ import annotations

import random
from collections.abc import Sequence

from verl_mtgrpo.roles.settings import RolesSettings


def draw(settings: RolesSettings, of: str, what: str) -> random.Random:
    """Return the draws for one thing of one question at one step; others have other ones.

    Args:
        settings: ``trainer.turn.roles``.
        of: Step and question.
        what: What is drawn.
    """
    return random.Random(f"{settings.seed} {of} {what}")


def fork_at(settings: RolesSettings, roles: Sequence[str], of: str) -> int:
    """Return the number of the role at which a prompt forks; the roles before it speak once.

    Args:
        settings: ``trainer.turn.roles``.
        roles: The roles in the order of speaking.
        of: Step and question.
    """
    return draw(settings, of, "fork").randrange(len(roles)) if settings.sampling == "rr" else 0


def asked_of(settings: RolesSettings, roles: int, fork: int, branches: int) -> int:
    """Return how many outputs a prompt is to have.

    With ``is`` they include those that only give an outcome to an output that does not go on.

    Args:
        settings: ``trainer.turn.roles``.
        roles: L, number of roles.
        fork: Number of the role at which it forks.
        branches: G.
    """
    if settings.order == "alternate":
        return roles * branches
    if settings.sampling == "is":
        return sum(branches + (branches - 1) * (roles - number - 1) for number in range(roles))
    return fork + branches * (roles - fork)
