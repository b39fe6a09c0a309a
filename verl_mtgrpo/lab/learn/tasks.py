"""List the tasks of ``mtgrpo lab learn``: search, chains of searches, a price per search, AgentCreditBench's three.

Rewards of ``search`` and ``chain`` are those of the paper's first study (:mod:`verl_mtgrpo.rewards.paper_v1`) without
its form terms: 0.2 for a call that was carried out, 0.5 for a hit. A right answer pays 1 unless set otherwise; the
study pays 1.5 for one that is exact, as it also contains the answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.lab.learn.task import Node, Task, Way

EXECUTION, HIT, EXACT = 0.2, 0.5, 1.0


def search(
    *,
    heart: float = 0.3,
    broken: float = 0.2,
    good: float = 0.3,
    read: float = 0.1,
    use: float = 0.2,
    known_by: str = "question",
    right: float = EXACT,
) -> Task:
    """Return the search task: answer by heart, or search once and read what was found.

    Turn 1 decides whether to search, and if so whether the call is sound and the query good. Turn 2 answers from what
    was found: only a reader that has the passage is right. Four logits: search, sound, good, read.

    Args:
        heart: P, the share of questions that the policy knows by heart.
        broken: b, the share of broken calls before training.
        good: q, the share of good queries before training.
        read: r, how often a passage with the answer is read rightly before training.
        use: How often the policy searches before training.
        known_by: ``question``: a question is known to all rollouts of its group or to none; ``rollout``: each rollout
            knows the answer with probability P, whatever the question.
        right: Reward of a right answer.
    """
    if known_by not in ("rollout", "question"):
        raise ConfigError(f"known_by is {known_by!r}", expected="'question' or 'rollout'")
    by_heart = {"rollout": {"ask": heart}, "question": {"ask known": 1.0, "ask unknown": 0.0}}[known_by]
    starts = {"rollout": {"ask": 1.0}, "question": {"ask known": heart, "ask unknown": 1 - heart}}[known_by]
    asks = {name: Node(1, (Way("call"),), _answer(known, right), decides="search") for name, known in by_heart.items()}
    return Task(
        "search",
        f"Answer by heart (right for {heart:g} of the questions, known by {known_by}) or search once and read. At the "
        f"start {use:g} search, {broken:g} of the calls are broken, {good:g} of the queries are good, {read:g} of the "
        "passages with the answer are read.",
        policy={"search": use, "sound": 1 - broken, "good": good, "read": read},
        starts=starts,
        nodes={
            **asks,
            "call": Node(1, (Way("query"),), (Way("nothing found", marks=("tool",)),), decides="sound"),
            "query": Node(
                1,
                (Way("found", reward=EXECUTION + HIT, marks=("tool", "hit")),),
                (Way("nothing found", reward=EXECUTION, marks=("tool",)),),
                decides="good",
            ),
            "nothing found": Node(2, (Way(),)),
            "found": Node(2, _answer(1.0, right), (Way(),), decides="read"),
        },
        goal="exact",
        watch="tool",
    )


def chain(*, hops: int = 4, good: float = 0.3, shared: bool = False, paid: float = HIT) -> Task:
    """Return a chain: every hop needs a good query, and the answer is right if all were good.

    Args:
        hops: K, the number of searches; the last turn answers.
        good: The share of good queries before training.
        shared: True: one logit for all hops; False: one for each.
        paid: Reward of a good query.
    """
    if hops < 1:
        raise ConfigError(f"hops is {hops}", expected="1 or more")
    logit = ["good" if shared else f"good {k}" for k in range(1, hops + 1)]

    def hop(k: int, on: str) -> Node:
        """``on`` says whether all queries so far were good; a bad one leads to the same hops without a right answer."""
        yes = f"{on} {k + 1}"
        return Node(k, (Way(yes, reward=paid, marks=("hit",)),), (Way(f"lost {k + 1}"),), decides=logit[k - 1])

    nodes = {f"{on} {k}": hop(k, on) for on in ("on", "lost") for k in range(1, hops + 1) if on == "on" or k > 1}
    nodes[f"on {hops + 1}"] = Node(hops + 1, _answer(1.0))
    nodes[f"lost {hops + 1}"] = Node(hops + 1, (Way(),))
    return Task(
        f"chain of {hops}",
        f"{hops} searches in a row, each with a good query ({good:g} at the start, "
        f"{'one logit for all' if shared else 'a logit each'}); the answer is right if all were good.",
        policy=dict.fromkeys(logit, good),
        starts={"on 1": 1.0},
        nodes=nodes,
        goal="exact",
    )


def price(*, turns: int = 4, cost: float = 0.1, good: float = 0.5, go_on: float = 0.5) -> Task:
    """Return a task in which every search costs, and two facts are needed: search until both are there, then answer.

    Rewards are those of the paper's second study without its form terms: 0.3 for a search that finds a new fact, minus
    the price; a right answer pays 1. The goal is the mean total reward.

    Args:
        turns: The most searches.
        cost: The price of a search.
        good: The share of good queries before training.
        go_on: How often the policy searches on before training, with 0, 1 and 2 facts.
    """
    if turns < 1:
        raise ConfigError(f"turns is {turns}", expected="1 or more")
    nodes: dict[str, Node] = {}
    for k in range(1, turns + 2):
        for facts in range(min(k, 3)):
            answer = (*_answer((0.1, 0.3, 1.0)[facts]),)
            if k > turns:
                nodes[f"turn {k}, facts {facts}"] = Node(k, answer)
                continue
            more = min(facts + 1, 2)
            found = 0.3 * (facts < 2) - cost
            nodes[f"turn {k}, facts {facts}"] = Node(
                k, (Way(f"query {k}, facts {facts}"),), answer, decides=f"go on with {facts}"
            )
            nodes[f"query {k}, facts {facts}"] = Node(
                k,
                (Way(f"turn {k + 1}, facts {more}", reward=found, marks=("searches",)),),
                (Way(f"turn {k + 1}, facts {facts}", reward=-cost, marks=("searches",)),),
                decides="good",
            )
    return Task(
        "price",
        f"Up to {turns} searches at {cost:g} each; two facts make the answer right (guessed with 0: 0.1, with 1: 0.3). "
        "It pays to search until both are there and then to stop.",
        policy={**{f"go on with {facts}": go_on for facts in range(min(turns, 3))}, "good": good},
        starts={"turn 1, facts 0": 1.0},
        nodes=nodes,
    )


def delayed_effect(*, horizon: int = 8, good: float = 0.8, bad: float = 0.2) -> Task:
    """Return AgentCreditBench's DelayedEffectEnv with a uniform policy: only the first action matters.

    Source: hectopascal/agent-credit-bench@02afaf3, src/agent_credit_bench/envs/delayed_effect.py. As there, each step
    and latent state has a logit of its own.
    """
    if horizon < 2:
        raise ConfigError(f"horizon is {horizon}", expected="2 or more")
    nodes = {"start": Node(1, (Way("good 2"),), (Way("bad 2"),), decides="GOOD")}
    policy = {"GOOD": 0.5}
    for latent, success in (("good", good), ("bad", bad)):
        for k in range(2, horizon + 1):
            follows = (Way(f"{latent} {k + 1}"),) if k < horizon else _answer(success)
            policy[f"DISTRACT {latent} {k}"] = 0.5
            nodes[f"{latent} {k}"] = Node(k, follows, follows, decides=f"DISTRACT {latent} {k}")
    about = (
        f"AgentCreditBench's delayed effect: the first of {horizon} actions makes success {good:g} or {bad:g} likely, "
    )
    return Task("delayed effect", about + "the others do nothing.", policy, {"start": 1.0}, nodes, goal="exact")


def recovery(*, success: float = 1.0) -> Task:
    """Return AgentCreditBench's RecoveryEnv with a uniform policy: a mistake that the next action may repair.

    Source: hectopascal/agent-credit-bench@02afaf3, src/agent_credit_bench/envs/recovery.py.
    """
    nodes = {
        "s0": Node(1, _answer(1.0), (Way("mistake"),), decides="GOOD"),
        "mistake": Node(2, _answer(success), (Way(),), decides="RECOVER"),
    }
    about = "AgentCreditBench's recovery: GOOD succeeds; after BAD the next action may still RECOVER."
    return Task("recovery", about, {"GOOD": 0.5, "RECOVER": 0.5}, {"s0": 1.0}, nodes, goal="exact")


def variable_horizon(
    *, stop_rewards: tuple[float, ...] = (0.0, 2.0, 1.0, 3.0, 0.0), stop: float = 0.5, on: float = 0.0
) -> Task:
    """Return AgentCreditBench's VariableHorizonEnv: stop now for this step's reward, or go on.

    Source: hectopascal/agent-credit-bench@02afaf3, src/agent_credit_bench/envs/variable_horizon.py. The last step
    stops.
    """
    last = len(stop_rewards)
    nodes = {
        f"alive {k}": Node(k, (Way(reward=paid),), (Way(f"alive {k + 1}", reward=on),), decides=f"STOP {k}")
        for k, paid in enumerate(stop_rewards[:-1], start=1)
    }
    nodes[f"alive {last}"] = Node(last, (Way(reward=stop_rewards[-1]),))
    about = f"AgentCreditBench's variable horizon: stopping at step k pays {', '.join(f'{x:g}' for x in stop_rewards)}."
    policy = {f"STOP {k}": stop for k in range(1, last)}
    return Task("variable horizon", about, policy, {"alive 1": 1.0}, nodes)


TASKS: Mapping[str, Callable[..., Task]] = {
    "search": search,
    "chain": chain,
    "price": price,
    "delayed_effect": delayed_effect,
    "recovery": recovery,
    "variable_horizon": variable_horizon,
}
"""The tasks by the name that ``--task`` takes."""


def make(name: str, **settings: Any) -> Task:
    """Return the built-in task ``name`` with these settings.

    Raises:
        ConfigError: no such task or setting, or a value that makes no sense.
    """
    if name not in TASKS:
        raise ConfigError(
            f"--task {name!r} is unknown", expected=f"one of {', '.join(TASKS)}, or a file that ends in .yaml"
        )
    known = {p.name: p.default for p in inspect.signature(TASKS[name]).parameters.values()}
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"task {name} has no setting {key!r}", fix=f"settings: {', '.join(known)}")
        wanted = type(known[key])
        if wanted is not tuple and not isinstance(value, (int, float) if wanted is float else wanted):
            raise ConfigError(f"{key} of task {name} is {value!r}", expected=f"a {wanted.__name__} like {known[key]!r}")
    return TASKS[name](**settings)


def _answer(likely: float, reward: float = EXACT) -> tuple[Way, ...]:
    """Return an answer that is right with this probability, and then earns ``reward``."""
    ways = (Way(probability=likely, reward=reward, marks=("exact",)), Way(probability=1 - likely))
    return tuple(way for way in ways if way.probability > 0)
