"""``mtgrpo lab learn``: tasks worked out by hand, learning, verdicts, maps, and files that describe a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from verl_mtgrpo.credit import ESTIMATORS, register_estimator
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.lab.learn import (
    EXAMPLE,
    MAPS,
    TASKS,
    Budget,
    Curves,
    Task,
    draw_up,
    first_step,
    learn,
    load_task,
    make,
    method,
    methods,
    most,
    thinned,
    verdicts,
)
from verl_mtgrpo.lab.learn.rollouts import Walks, sample

SMALL = Budget(steps=20, groups=4, size=4)


def at_start(task: Task, what: str | None) -> float:
    return float(task.expected(task.start_logits[None], what))


# Every task: what its policy earns before training and what the best policy earns, worked out by hand.
@pytest.mark.parametrize(
    ("name", "settings", "expected", "reachable"),
    [
        # 0.2 search; of these 0.8 sound, 0.3 good, 0.1 read; the others know 0.3. Turns earn 0.2 · (0.16 + 0.12).
        ("search", {}, {"tool": 0.2, "hit": 0.2 * 0.24, "exact": 0.2 * 0.024 + 0.8 * 0.3, None: 0.056 + 0.2448}, 1.0),
        ("search", {"right": 1.5}, {"exact": 0.2448, None: 0.056 + 1.5 * 0.2448}, 1.0),
        ("search", {"known_by": "rollout"}, {"exact": 0.2 * 0.024 + 0.8 * 0.3}, 1.0),
        # Three hops at 0.3: 0.9 hits at 0.5 each, and the answer in 0.027.
        ("chain", {"hops": 3}, {"hit": 0.9, "exact": 0.027, None: 0.477}, 1.0),
        ("chain", {"hops": 3, "shared": True}, {"hit": 0.9, "exact": 0.027}, 1.0),
        # One search at most: half answer at once (right in 0.1); half pay 0.1, half of these find 0.3 and guess 0.3.
        # Best: always search, always good: 0.3 - 0.1 + 0.3.
        ("price", {"turns": 1}, {"searches": 0.5, None: 0.05 + 0.5 * (-0.1 + 0.5 * (0.3 + 0.3) + 0.5 * 0.1)}, 0.5),
        ("delayed_effect", {"horizon": 4}, {"exact": 0.5}, 0.8),
        # GOOD 1/2, or BAD and RECOVER 1/4.
        ("recovery", {}, {"exact": 0.75}, 1.0),
        # 0/2 + 2/4 + 1/8 + 3/16 + 0/16.
        ("variable_horizon", {}, {None: 0.8125}, 3.0),
    ],
)
def test_tasks_by_hand(name, settings, expected, reachable):
    task = make(name, **settings)
    assert {what: at_start(task, what) for what in expected} == pytest.approx(expected)
    assert task.reachable == pytest.approx(reachable)


def test_advantages_of_agentcreditbenchs_tasks():
    # Its README and docstrings: A(BAD) = -0.25, A(RECOVER) = +0.5; continuing is good at steps 1 and 3, bad at 2 and 4.
    task = make("recovery")
    value, answer = (x[0] for x in task.values(task.start_logits[None]))
    first, second = task.order.index("s0"), task.order.index("mistake")
    assert (answer[first, 0] - value[first]).item() == pytest.approx(-0.25)
    assert (answer[second, 1] - value[second]).item() == pytest.approx(0.5)
    task = make("variable_horizon")
    value, answer = (x[0] for x in task.values(task.start_logits[None]))
    signs = [
        (answer[task.order.index(f"alive {k}"), 0] - value[task.order.index(f"alive {k}")]).sign() for k in range(1, 5)
    ]
    assert signs == [1, -1, 1, -1]
    task = make("delayed_effect", horizon=3)
    value, answer = (x[0] for x in task.values(task.start_logits[None]))
    assert answer[task.order.index("start")].tolist() == pytest.approx([0.2, 0.8])
    assert torch.allclose(answer[1:], value[1:, None])


@pytest.mark.parametrize("name", TASKS)
def test_samples_earn_what_is_expected(name):
    task = make(name)
    walks = sample(task, task.start_logits[None], [torch.Generator().manual_seed(0)], groups=10_000, size=2)
    assert walks.reward_BD.sum(dim=1).mean().item() == pytest.approx(at_start(task, None), abs=0.03)


def test_how_rollouts_are_laid_out_and_paid():
    # Three tokens of turn 1, an observation, one token of turn 2; and a rollout of one token.
    walks = Walks(
        node_BD=torch.tensor([[0, 1, 2, 3], [0, -1, -1, -1]]),
        yes_BD=torch.tensor([[True, True, True, False], [False] * 4]),
        reward_BD=torch.tensor([[0.0, 0.2, 0.5, 1.0], [0.25, 0.0, 0.0, 0.0]]),
        group_B=torch.tensor([0, 0]),
        turn_BD=torch.tensor([[0, 0, 0, 1], [0, -1, -1, -1]]),
    )
    assert walks.mask.tolist() == [[1, 1, 1, 0, 1], [1, 0, 0, 0, 0]]

    def paid(how: str) -> list[list[float]]:
        return [pytest.approx(row) for row in walks.response(walks.paid_BD(how)).tolist()]

    assert paid("turns") == [[0, 0.2, 0.5, 0, 1.0], [0.25, 0, 0, 0, 0]]
    assert paid("merged") == [[0, 0, 0, 0, 1.7], [0.25, 0, 0, 0, 0]]
    assert paid("outcome") == [[0, 0, 0, 0, 1.0], [0.25, 0, 0, 0, 0]]


@pytest.mark.parametrize("known_by", ["question", "rollout"])
def test_questions_that_are_known_are_known_to_the_whole_group(known_by):
    task = make("search", use=0.001, heart=0.5, known_by=known_by)
    walks = sample(task, task.start_logits[None], [torch.Generator().manual_seed(0)], groups=300, size=4)
    right = walks.reward_BD[:, 0].view(300, 4).sum(dim=1)
    mixed = ((right > 0) & (right < 4)).float().mean()
    assert mixed < 0.02 if known_by == "question" else mixed > 0.8
    assert right.mean().item() == pytest.approx(2.0, abs=0.25)


@pytest.mark.parametrize("name", ["mt_grpo", "grpo_or", "turn_reinforce_pp", "turn_gae"])
def test_a_seed_gives_the_same_curve_whatever_the_other_seeds_are(name):
    task = make("search")
    together = learn(task, method(name), SMALL, seeds=[0, 1, 2])
    again = learn(task, method(name), SMALL, seeds=[2])
    assert torch.allclose(together.logits[2], again.logits[0], atol=1e-5)
    assert not torch.allclose(together.goal[1], together.goal[2], atol=1e-3)
    assert torch.equal(learn(task, method(name), SMALL, seeds=[0, 1, 2]).logits, together.logits)


def test_only_the_plain_step_depends_on_the_scale_of_the_advantages():
    task = make("chain", hops=2)
    whole, half = method("turn_rloo"), make("chain", hops=2)
    half = replace(half, nodes=_scaled(half, 0.5))

    def moved(optimizer: str) -> list[float]:
        budget = Budget(steps=3, groups=4, size=4, optimizer=optimizer)
        return [float(learn(t, whole, budget, seeds=[0]).logits[0, -1, 0]) for t in (task, half)]

    for optimizer in ("normalised", "adam"):
        assert moved(optimizer)[0] == pytest.approx(moved(optimizer)[1], abs=1e-4)
    assert moved("plain")[0] != pytest.approx(moved("plain")[1], abs=1e-3)


def _scaled(task: Task, factor: float):
    def ways(given):
        return tuple(replace(way, reward=way.reward * factor) for way in given)

    return {name: replace(node, yes=ways(node.yes), no=ways(node.no)) for name, node in task.nodes.items()}


def test_what_the_map_says_about_the_papers_setting():
    # A third known by heart, clumsy reading: the outcome alone unlearns the search, turn rewards teach it.
    task = make("search", heart=0.35, broken=0.2, good=0.35, read=0.1, use=0.15)
    found = {}
    for name in ("grpo_or", "mt_grpo"):
        curves = learn(task, method(name), Budget(steps=200), seeds=[0, 1])
        found[name] = most(verdicts(task, curves)), float(curves.marks["tool"][:, -1].mean())
    assert found["grpo_or"][0] == ("collapses", 2)
    assert found["grpo_or"][1] < 0.02
    assert found["mt_grpo"][0] == ("learns", 2)
    assert found["mt_grpo"][1] > 0.95


def curves_of(goal: list[list[float]], tool: list[list[float]]) -> Curves:
    seeds = range(len(goal))
    marks = {"tool": torch.tensor(tool, dtype=torch.float64)}
    return Curves(method("mt_grpo"), seeds, marks, torch.tensor(goal, dtype=torch.float64), torch.zeros(0))


def test_verdicts_by_hand():
    # The start is 0.2 and the best 1: half of the way is 0.6. Tool use was 0.2: at 0.05 it has collapsed.
    task = make("search")
    curves = curves_of(
        goal=[[0.2, *[0.61] * 10], [0.2, *[0.59] * 10], [0.2, 0.9, *[0.3] * 9], [0.2, *[0.3] * 10]],
        tool=[[0.2, *[0.0] * 10], [0.2, *[0.06] * 10], [0.2, *[0.0] * 10], [0.2, *[0.05] * 10]],
    )
    assert verdicts(task, curves) == ["learns", "stalls", "collapses", "collapses"]
    assert first_step(task, curves) == [1, None, 1, None]
    assert most(["learns", "stalls", "collapses", "collapses"]) == ("collapses", 2)
    assert most(["learns", "stalls"]) == ("stalls", 1)


def test_a_map_has_a_cell_for_every_method_and_point():
    plan = thinned(MAPS["chain"])
    assert [axis.values for axis in (plan.across, plan.up)] == [(2, 8, 32), (1, 3, 6)]
    plan = replace(plan, across=replace(plan.across, values=(2, 8)), up=replace(plan.up, values=(1, 2)))
    said: list[str] = []
    cells = draw_up(plan, methods(["grpo_or"]), Budget(steps=10), seeds=[0], settings={}, on_cell=said.append)
    assert [(cell.up, cell.across) for cell in cells] == [(1, 2), (1, 8), (2, 2), (2, 8)]
    assert len(said) == 4
    assert cells[0].reason == pytest.approx(1 - 0.3**2 - 0.7**2)


def test_an_estimator_of_ones_own_and_one_that_asks_for_too_much():
    @register_estimator
    def plain(token_level_rewards, response_mask, index, *, factor=1.0):
        return factor * token_level_rewards.sum(dim=1, keepdim=True) * response_mask, token_level_rewards

    @register_estimator
    def greedy(token_level_rewards, response_mask, index, transcript):
        raise AssertionError

    try:
        assert learn(make("recovery"), method("plain:factor=2"), SMALL, seeds=[0]).goal.shape == (1, 21)
        with pytest.raises(ConfigError, match="greedy asks for 'transcript', expected rewards, mask and groups"):
            learn(make("recovery"), replace(method("plain"), estimator="greedy"), SMALL, seeds=[0])
    finally:
        del ESTIMATORS["plain"], ESTIMATORS["greedy"]


def test_methods_with_settings():
    assert method("mt_grpo:scale=none,discount=0.5").settings == {"scale": "none", "discount": 0.5}
    assert method("mt_grpo:scale=none").title == "MT-GRPO, scale=none"
    assert [m.name for m in methods(["all", "mt_grpo"])][:3] == ["grpo_or", "grpo_mr", "mt_grpo"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mt_gpro", "'mt_gpro' is unknown, expected all, or some of grpo_or"),
        ("mt_grpo:scale", "'scale' is no setting of mt_grpo, expected knob=value"),
        ("mt_grpo:lam=1", "'lam=1' is no setting of mt_grpo"),
        ("mt_grpo:scale=2026-13-45", "scale cannot be read: ValueError: month"),
        ("mt_grpo:scale=[", "scale cannot be read: while parsing"),
        ("mt_grpo:scale=big", "mt_grpo:scale=big': scale is 'big'"),
        ("mt_grpo:discount=-1", "discount is -1"),
    ],
)
def test_methods_that_do_not_exist(spec, message):
    with pytest.raises(ConfigError, match=message):
        method(spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "--steps is 0, expected 1 or more"),
        ({"size": 1}, "--size is 1, expected 2 or more"),
        ({"optimizer": "sgd"}, "--optimizer is 'sgd', expected one of normalised, adam, plain"),
        ({"length": 0.0}, "--length is 0.0, expected more than 0"),
    ],
)
def test_budgets_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        Budget(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("seek", {}, "'seek' is unknown, expected one of search, chain"),
        ("search", {"heard": 0.3}, "no setting 'heard'; settings: heart"),
        ("search", {"heart": "much"}, "heart of task search is 'much', expected a float like 0.3"),
        ("search", {"heart": 1.5}, "add up to 1"),
        ("search", {"read": 0.0}, "read begins with the probability 0.0"),
        ("search", {"known_by": "nobody"}, "known_by is 'nobody'"),
        ("price", {"turns": 0}, "turns is 0, expected 1 or more"),
        ("chain", {"hops": 0}, "hops is 0, expected 1 or more"),
        ("delayed_effect", {"horizon": 1}, "horizon is 1, expected 2 or more"),
    ],
)
def test_tasks_that_make_no_sense(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(name, **settings)


def test_the_example_file_is_a_task(tmp_path: Path):
    path = tmp_path / "task.yaml"
    path.write_text(EXAMPLE)
    task = load_task(path)
    assert at_start(task, "tool") == pytest.approx(0.2)
    assert at_start(task, "exact") == pytest.approx(0.2 * 0.1 + 0.8 * 0.3)
    assert task.reachable == 1.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: one search", "", "name is missing"),
        ("goal: exact", "gaol: exact", "'gaol' is unknown, expected some of name"),
        ("goal: exact", "goal: exakt", "goal is 'exakt', expected one of the marks"),
        ("search: 0.2", "search: often", "policy.search is 'often', expected a number"),
        ("search: 0.2", "search: 0.2, x: 0.5", "no node that can be reached decides 'x'; take it out"),
        ("ask: 1.0", "ask: 0.5", "the shares of the starts are"),
        ("ask: 1.0", "asks: 1.0", "there is no node 'asks', expected one of ask, read"),
        ("turn: 2", "turn: 3", "turn 3 .'read'. follows turn 1"),
        ("turn: 2", "turn: two", "node read: turn is 'two', expected a whole number"),
        ("{to: read, reward", "{to: reed, reward", "there is no node 'reed'"),
        ("yes: [{reward: 1.0, marks: [exact]}]", "yes: [{to: ask}]", "can be reached twice in one rollout"),
        ("no: [{}]", "no: []", "has a decision or an answer no, expected both"),
        ("no: [{}]", "no: [{probability: 0.5}]", "the probabilities at node 'read' are"),
        ("decides: read", "decides: reads", "decides 'reads', expected a logit of the policy"),
        ("marks: [tool]", "marks: tool", "marks is 'tool', expected a list of names"),
        ("no: [{}]", "no: nothing", "no is 'nothing', expected a list"),
        ("name: one search", "name: !!python/object/apply:os.getcwd []", "is no YAML"),
        ("name: one search", "name: 2026-13-45", "is no YAML: ValueError: month"),
    ],
)
def test_files_that_describe_no_task(old, new, message, tmp_path: Path):
    assert old in EXAMPLE
    path = tmp_path / "task.yaml"
    path.write_text(EXAMPLE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_task(path)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no such file; see `mtgrpo lab learn --example`"):
        load_task(tmp_path / "none.yaml")
