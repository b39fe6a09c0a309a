"""Work out the advantages of one group of outputs of roles, number by number.

As in :mod:`.explain`, this is plain Python that repeats the arithmetic of :mod:`verl_mtgrpo.credit.roles` in another
way: no tensors, and outputs that are looked up one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

from verl_mtgrpo.report.terms import Norm, Part, Rewards, Term, Working, divided, mean_of, std_of, weighted

Settings = Mapping[str, Any]
_REDUCE: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": mean_of, "max": max, "min": min}


@dataclass(frozen=True)
class Output:
    """What an output of a role says of itself.

    Attributes:
        role: The role that wrote it.
        output_id: Its name in the group.
        fed_by: The names of the outputs that it read.
        learnt: False if nothing is learnt from it; what it was paid counts all the same.
        kept: False if it was dropped.
    """

    role: str
    output_id: str
    fed_by: tuple[str, ...] = ()
    learnt: bool = True
    kept: bool = True


@dataclass(frozen=True)
class Played:
    """The outputs of one group as the estimator saw them.

    Attributes:
        outputs: What each says of itself.
        rewards: What each of its turns was paid.
        readers: For each output the numbers of those that read it.
        order: Every output that was not dropped, each after those that read it.
    """

    outputs: Sequence[Output]
    rewards: Rewards
    readers: Sequence[Sequence[int]]
    order: Sequence[int]

    def own(self, row: int) -> list[float]:
        """Return what each turn was paid apart from the outcome, which is the last turn's reward if nobody read on."""
        paid = list(self.rewards[row])
        if not self.outputs[row].learnt:  # its turns are not told apart: all of it is one reward
            paid = [fsum(paid)]
        return paid if self.readers[row] else [*paid[:-1], 0.0]

    def outcome(self, row: int) -> float:
        """Return the outcome of an output that nobody read; 0 for others."""
        paid = self.rewards[row]
        if self.readers[row] or not paid:
            return 0.0
        return paid[-1] if self.outputs[row].learnt else fsum(paid)

    def company(self, row: int, turn: int) -> list[int]:
        """Return the outputs that one is compared with: those of its role that have the turn, itself included."""
        learnt = (one for one in sorted(self.order) if self.outputs[one].learnt and len(self.rewards[one]) > turn)
        return [one for one in learnt if self.outputs[one].role == self.outputs[row].role]


def read_outputs(outputs: Sequence[Output], rewards: Rewards) -> Played:
    """Find who read whom in a group.

    Raises:
        ValueError: two outputs have one name, one read an output that is not there, or there is a circle.
    """
    at: dict[str, int] = {}
    kept = [row for row, one in enumerate(outputs) if one.kept]
    for row in kept:
        name = outputs[row].output_id
        if name and at.setdefault(name, row) != row:
            raise ValueError("two outputs have one name")
    readers: list[list[int]] = [[] for _ in outputs]
    for row in kept:
        for name in dict.fromkeys(outputs[row].fed_by):
            if name not in at:
                raise ValueError("an output was read that is not there")
            readers[at[name]].append(row)
    waiting = {row: len(readers[row]) for row in kept}
    order = [row for row in kept if not waiting[row]]
    for row in order:  # grows while it is walked through
        for name in dict.fromkeys(outputs[row].fed_by):
            waiting[at[name]] -= 1
            if not waiting[at[name]]:
                order.append(at[name])
    if len(order) < len(kept):
        raise ValueError("outputs read each other in a circle")
    return Played(outputs, rewards, readers, order)


def mhgpo(group: Played, settings: Settings) -> Working:
    """Work out A_i = norm(V_i) over the outputs of a role, V_i = c · S_i + (O_i, or the reduced V_j of its readers).

    With ``combine=apart`` these are two terms, c · norm(S_i) + norm(P_i), where P_i is the outcome that flowed back.
    """
    apart, by_turn = settings["combine"] == "apart", settings["group_by"] == "role_turn"
    coef, reduce = float(settings["turn_coef"]), str(settings["reduce"])
    counts = 0.0 if apart else coef  # what own rewards count in what flows back
    worth, back = [0.0] * len(group.outputs), [0.0] * len(group.outputs)
    for row in group.order:
        if group.readers[row]:
            back[row] = _REDUCE[reduce]([worth[one] for one in group.readers[row]])
        worth[row] = counts * fsum(group.own(row)) + group.outcome(row) + back[row]

    def own_from(row: int, turn: int) -> float:
        return fsum(group.own(row)[turn if by_turn else 0 :])

    def value(row: int, turn: int) -> float:
        return counts * own_from(row, turn) + group.outcome(row) + back[row]

    def parts(row: int, turn: int) -> tuple[Part, ...]:
        own = own_from(row, turn)
        read = tuple((one, worth[one]) for one in group.readers[row])
        found = [Part("back", back[row], readers=read, reduce=reduce) if read else Part("outcome", group.outcome(row))]
        return (*found, Part("own", own, counts)) if own and counts else tuple(found)

    def terms_of(row: int, turn: int) -> list[Term]:
        company, number = group.company(row, turn if by_turn else 0), turn + 1 if by_turn else 0

        def term(kind: str, of: Callable[[int, int], float]) -> Term:
            return _compared(kind, number, of(row, turn), [of(one, turn) for one in company if one != row], settings)

        whole = replace(term("worth", value), parts=parts(row, turn))
        return [weighted(term("own", own_from), coef), whole] if apart else [whole]

    return [
        [terms_of(row, turn) for turn in range(len(group.rewards[row]))] if one.kept and one.learnt else []
        for row, one in enumerate(group.outputs)
    ]


def _compared(kind: str, turn: int, value: float, others: Sequence[float], settings: Settings) -> Term:
    """Return the term of a value that is compared with those of the other outputs of the role."""
    if not others:
        return Term(kind, turn, value, value, None, 1, 0.0, baseline="no_output")
    values, name = [value, *others], "turn" if turn else "outputs"
    if settings["baseline"] == "mean":
        return Norm(settings).term(kind, turn, value, values, baseline=f"{name}_of_role")
    mean = mean_of(others)
    std = std_of(values) if settings["scale"] == "std" else None
    normalized = value - mean if std is None else divided(value - mean, std + float(settings["epsilon"]))
    return Term(kind, turn, value, mean, std, len(others), normalized, baseline=f"other_{name}_of_role")


EXPLAINED_WITH_ROLES: Mapping[str, Callable[[Played, Settings], Working]] = {"mhgpo": mhgpo}
"""How to work out the advantages of a group of outputs of roles."""
