"""MHGPO once more, as a recursion over explicit lists, to test the fast one against. Nothing here uses the package."""

from __future__ import annotations

from tests.oracles import norm, runs_of_ones


class Outputs:
    """Rows, what their turns were paid, and who read whom."""

    def __init__(self, rewards, masks, prompts, roles, ids, fed_by):
        self.masks, self.prompts, self.roles = masks, prompts, roles
        self.turns = [runs_of_ones(mask) for mask in masks]
        self.paid = [[sum(rewards[i][t] for t in turn) for turn in turns] for i, turns in enumerate(self.turns)]
        for i, turns in enumerate(self.turns):
            if not turns:  # a frozen role: what it was paid counts, and nothing of it is trained
                self.paid[i] = [sum(rewards[i])]
        self.readers = [
            [
                j
                for j in range(len(masks))
                if prompts[j] == prompts[i] and ids[i] and ids[i] in (fed_by[j] or "").split("/")
            ]
            for i in range(len(masks))
        ]

    def outcome(self, i):
        return None if self.readers[i] else self.paid[i][-1]

    def own(self, i):
        return self.paid[i] if self.readers[i] else [*self.paid[i][:-1], 0.0]

    def worth(self, i, c, how, own=True):
        below = [self.worth(j, c, how, own) for j in self.readers[i]]
        flows = {"mean": lambda: sum(below) / len(below), "max": lambda: max(below), "min": lambda: min(below)}
        return (c * sum(self.own(i)) if own else 0.0) + (flows[how]() if below else self.outcome(i))


def mhgpo(
    outputs: Outputs,
    *,
    reduce="mean",
    combine="sum",
    c=1.0,
    group_by="role",
    baseline="mean",
    scale="std",
    epsilon=1e-6,
):
    """Every turn of every row: what is compared, with whom, and how."""

    def terms(i, k):
        later = sum(outputs.own(i)[k if group_by == "role_turn" else 0 :])
        flows = outputs.worth(i, c, reduce, own=combine == "sum")
        if combine == "apart":
            return [(c, later), (1.0, flows)]
        return [(1.0, flows - c * sum(outputs.own(i)) + c * later)]

    def company(i, k):
        same = [
            j
            for j, turns in enumerate(outputs.turns)
            if turns and (outputs.prompts[j], outputs.roles[j]) == (outputs.prompts[i], outputs.roles[i])
        ]
        return [j for j in same if group_by == "role" or len(outputs.turns[j]) > k]

    advantages = [[0.0] * len(mask) for mask in outputs.masks]
    for i, turns in enumerate(outputs.turns):
        for k, tokens in enumerate(turns):
            others = company(i, k)
            total = 0.0
            for term in range(1 if combine == "sum" else 2):
                values = [terms(j, k)[term][1] for j in others]
                weight, mine = terms(i, k)[term]
                if len(others) == 1:
                    continue
                if baseline == "mean":
                    total += weight * norm(values, scale, epsilon)[others.index(i)]
                else:
                    centred = mine - (sum(values) - mine) / (len(values) - 1)
                    mean = sum(values) / len(values)
                    std = (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5
                    total += weight * centred / (std + epsilon if scale == "std" else 1.0)
            for t in tokens:
                advantages[i][t] = total
    return advantages
