"""Describe a task that a tiny policy learns: a graph of yes-or-no decisions, each with a logit, and of chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from verl_mtgrpo.errors import ConfigError

_MOST_LOGITS = 16  # the best policy is found by trying all 2^16


@dataclass(frozen=True)
class Way:
    """One thing that may follow a decision.

    Attributes:
        to: The node that comes next; None: the rollout ends here.
        probability: How often this follows; those of one answer add up to 1.
        reward: Paid at this token.
        marks: Names of what has happened here, such as ``tool`` or ``exact``; they are counted.
    """

    to: str | None = None
    probability: float = 1.0
    reward: float = 0.0
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """One generated token: a decision, or a token that is certain.

    Attributes:
        turn: The turn that the token belongs to, counted from 1.
        yes: What may follow if the answer is yes.
        no: What may follow if it is no.
        decides: The logit that says how likely yes is; None: it is always yes.
    """

    turn: int
    yes: tuple[Way, ...]
    no: tuple[Way, ...] = ()
    decides: str | None = None

    @property
    def answers(self) -> tuple[tuple[Way, ...], ...]:
        """Return what may follow, for yes and, if there is a decision, for no."""
        return (self.yes, self.no) if self.decides else (self.yes,)

    @property
    def followers(self) -> list[str]:
        """Return the nodes that may come next."""
        return [way.to for ways in self.answers for way in ways if way.to is not None]


@dataclass(frozen=True)
class Task:
    """A task and the policy that learning starts with.

    Attributes:
        name: A short name.
        about: A description in a sentence or two.
        policy: Logit -> the probability of yes before training. One logit may decide at several nodes.
        starts: First node -> the share of questions that begin there. A group has one question.
        nodes: The nodes by name.
        goal: The mark whose frequency says how well the task is done; None: the mean total reward does.
        watch: The mark of the behaviour that a method may unlearn; None: there is none.
    """

    name: str
    about: str
    policy: Mapping[str, float]
    starts: Mapping[str, float]
    nodes: Mapping[str, Node]
    goal: str | None = None
    watch: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def order(self) -> list[str]:
        """Return the nodes that can be reached, each before those that follow it."""
        done: list[str] = []
        for start in self.starts:
            _visit(self, start, done, on_path=())
        return done[::-1]

    @cached_property
    def marks(self) -> list[str]:
        """Return the names of all marks, in the order of the nodes."""
        ways = [way for name in self.order for ways in self.nodes[name].answers for way in ways]
        return list(dict.fromkeys(mark for way in ways for mark in way.marks))

    @cached_property
    def tables(self) -> Tables:
        """Return the graph as tensors."""
        return _tables(self)

    @property
    def start_logits(self) -> Tensor:
        """Return the logits before training, ``(P,)`` float64."""
        return torch.tensor(list(self.policy.values()), dtype=torch.float64).logit()

    def expected(self, logits_LP: Tensor, what: str | None) -> Tensor:
        """Return E[number of the mark ``what``], or E[total reward] for None, ``(L,)``, by enumeration."""
        return (self.values(logits_LP, what)[0] * self.tables.start_N).sum(dim=1)

    def values(self, logits_LP: Tensor, what: str | None = None) -> tuple[Tensor, Tensor]:
        """Return what is still to come at each node, ``(L, N)``, and after each answer, ``(L, N, 2)``; differentiable.

        Counted is the mark ``what``, or the reward for None. Nodes are in the order of :attr:`order`.
        """
        tables = self.tables
        paid = tables.reward if what is None else tables.mark[..., self.marks.index(what)].double()
        yes_LN = self.yes(logits_LP)
        value: list[Tensor] = [torch.empty(0)] * len(self.order)
        answer: list[Tensor] = [torch.empty(0)] * len(self.order)
        for n in reversed(range(len(self.order))):
            rows: list[Tensor] = []
            for a in (0, 1):
                row = (tables.probability[n, a] * paid[n, a]).sum().expand(len(logits_LP))
                for w in range(tables.next.shape[2]):
                    follower = int(tables.next[n, a, w])
                    if follower >= 0 and tables.probability[n, a, w] > 0:
                        row = row + tables.probability[n, a, w] * value[follower]
                rows.append(row)
            answer[n] = torch.stack(rows, dim=1)
            value[n] = (1 - yes_LN[:, n]) * rows[0] + yes_LN[:, n] * rows[1]
        return torch.stack(value, dim=1), torch.stack(answer, dim=1)

    def yes(self, logits_LP: Tensor) -> Tensor:
        """Return the probability of yes at each node, ``(L, N)``."""
        logit = self.tables.logit_N
        return logits_LP.sigmoid()[:, logit.clamp(min=0)].where(logit >= 0, 1.0)

    def exact_gradient(self, logits_LP: Tensor, what: str | None = None) -> Tensor:
        """Return the gradient of :meth:`expected` with respect to the logits, ``(L, P)``."""
        with torch.enable_grad():
            logits = logits_LP.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.expected(logits, what).sum(), logits)
        return gradient

    @cached_property
    def reachable(self) -> float:
        """Return the best expected value of the goal that any setting of the logits reaches.

        The value is linear in each probability of a logit that a rollout meets at most once, so that a policy without
        chance is best; all of them are tried.
        """
        count = len(self.policy)
        if count > _MOST_LOGITS:
            raise ConfigError(f"task {self.name!r} has {count} logits", expected=f"at most {_MOST_LOGITS}")
        bits = (torch.arange(2**count)[:, None] >> torch.arange(count)) & 1
        return float(self.expected((bits.double() * 2 - 1) * torch.inf, self.goal).max())


@dataclass(frozen=True)
class Tables:
    """A task's graph as tensors. N nodes, 2 answers (no, yes), W ways, M marks.

    Attributes:
        start_N: Share of questions that begin at each node.
        logit_N: The number of the logit that decides, -1 where yes is certain.
        turn_N: The turn, counted from 0.
        probability: ``(N, 2, W)``, 0 where there is no such way.
        next: ``(N, 2, W)``, the node that follows, -1 where the rollout ends.
        reward: ``(N, 2, W)``.
        mark: ``(N, 2, W, M)`` bool.
        depth: The largest number of tokens of a rollout.
    """

    start_N: Tensor
    logit_N: Tensor
    turn_N: Tensor
    probability: Tensor
    next: Tensor
    reward: Tensor
    mark: Tensor
    depth: int


def _tables(task: Task) -> Tables:
    number = {name: n for n, name in enumerate(task.order)}
    logit = {name: n for n, name in enumerate(task.policy)}
    nodes = [task.nodes[name] for name in task.order]
    width = max(len(ways) for node in nodes for ways in node.answers)
    shape = (len(nodes), 2, width)
    probability, reward = torch.zeros(2, *shape, dtype=torch.float64)
    follows = torch.full(shape, -1)
    mark = torch.zeros(*shape, len(task.marks), dtype=torch.bool)
    left = [1] * len(nodes)  # tokens from here to the end
    for n, node in reversed(list(enumerate(nodes))):
        for answer, ways in zip((1, 0), node.answers, strict=False):
            for w, way in enumerate(ways):
                probability[n, answer, w], reward[n, answer, w] = way.probability, way.reward
                mark[n, answer, w, [task.marks.index(name) for name in way.marks]] = True
                if way.to is not None:
                    follows[n, answer, w] = number[way.to]
                    left[n] = max(left[n], 1 + left[number[way.to]])
    return Tables(
        start_N=torch.tensor([task.starts.get(name, 0.0) for name in task.order], dtype=torch.float64),
        logit_N=torch.tensor([logit[node.decides] if node.decides else -1 for node in nodes]),
        turn_N=torch.tensor([node.turn - 1 for node in nodes]),
        probability=probability,
        next=follows,
        reward=reward,
        mark=mark,
        depth=max(left),
    )


def _check(task: Task) -> None:
    """Raise ``ConfigError`` if the task makes no sense."""

    def refuse(found: str, *, expected: str = "", fix: str = "") -> None:
        raise ConfigError(f"task {task.name!r}: {found}", expected=expected, fix=fix)

    for name, start in task.policy.items():
        if not 0 < start < 1:
            refuse(f"{name} begins with the probability {start}", expected="more than 0 and less than 1")
    _check_sum(task, "the shares of the starts", list(task.starts.values()))
    for name, node in task.nodes.items():
        if node.decides is not None and node.decides not in task.policy:
            refuse(f"node {name!r} decides {node.decides!r}", expected=f"a logit of the policy ({_words(task.policy)})")
        if bool(node.decides) != bool(node.no):
            refuse(f"node {name!r} has a decision or an answer no", expected="both, or neither")
        for ways in node.answers:
            _check_sum(task, f"the probabilities at node {name!r}", [way.probability for way in ways])
    for name in task.order:  # walks the graph: unknown names and circles are found
        node = task.nodes[name]
        for follower in node.followers:
            turn = task.nodes[follower].turn
            if turn - node.turn not in (0, 1):
                refuse(
                    f"turn {turn} ({follower!r}) follows turn {node.turn} ({name!r})", expected="this turn or the next"
                )
    for name in task.starts:
        if task.nodes[name].turn != 1:
            refuse(f"the first node {name!r} is in turn {task.nodes[name].turn}", expected="turn 1")
    used = {task.nodes[name].decides for name in task.order}
    for name in task.policy:
        if name not in used:
            refuse(f"no node that can be reached decides {name!r}", fix="take it out of the policy")
    for field, mark in (("goal", task.goal), ("watch", task.watch)):
        if mark is not None and mark not in task.marks:
            refuse(f"{field} is {mark!r}", expected=f"one of the marks ({_words(task.marks)})")


def _check_sum(task: Task, what: str, shares: Sequence[float]) -> None:
    if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ConfigError(f"task {task.name!r}: {what} are {shares}", expected="numbers from 0 that add up to 1")


def _visit(task: Task, name: str, done: list[str], on_path: tuple[str, ...]) -> None:
    if name in on_path:
        raise ConfigError(
            f"task {task.name!r}: node {name!r} can be reached twice in one rollout ({' -> '.join((*on_path, name))})",
            fix="give each turn its own nodes",
        )
    if name in done:
        return
    if name not in task.nodes:
        raise ConfigError(f"task {task.name!r}: there is no node {name!r}", expected=f"one of {_words(task.nodes)}")
    for follower in task.nodes[name].followers:
        _visit(task, follower, done, (*on_path, name))
    done.append(name)


def _words(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(names) or "there is none"
