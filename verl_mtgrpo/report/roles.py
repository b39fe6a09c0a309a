"""Find out how the outputs of a group's roles belong together: who read whom, and whose conversation they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_mtgrpo.report.rollouts import DumpedRollout


@dataclass(frozen=True)
class Place:
    """Where an output stands among those of its group.

    Attributes:
        role: The role that wrote it.
        reads: Indices of the outputs that its prompt contains.
        conversation: Number of its conversation in the group; None outside of one.
        learnt: False if nothing is learnt from it.
    """

    role: str
    reads: tuple[int, ...]
    conversation: int | None
    learnt: bool


def places_of(rollouts: Sequence[DumpedRollout]) -> list[Place] | None:
    """Return the place of each output of a group; None if it has no roles.

    Ids that nothing in the group has are left out: a dump may have been written by anybody.
    """
    if not any(one.role for one in rollouts):
        return None
    at = {one.output_id: number for number, one in enumerate(rollouts) if one.output_id}
    named = dict.fromkeys(one.conversation for one in rollouts)
    talks = {name: number for number, name in enumerate(named)}
    return [
        Place(
            one.role,
            tuple(dict.fromkeys(at[name] for name in one.fed_by if name in at and at[name] != number)),
            talks[one.conversation] if one.conversation else None,
            one.learnt,
        )
        for number, one in enumerate(rollouts)
    ]
