"""Checks are independent: each finds the same alone, in any order, and among all others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("verl")

from tests.doctor.setups import DATA, ROLLOUT, TURNS, Healthy
from verl_mtgrpo.doctor.checks import CHECKS, Check, checks_at_start, examine, named
from verl_mtgrpo.doctor.compose import CommandLine, compose_config
from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.errors import AbsentError

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.network, pytest.mark.compose]

MODEL = "actor_rollout_ref.model.path"
GROUPS = ("hydra.searchpath=[pkg://verl_mtgrpo.config]", "+mtgrpo=mt_grpo", "+mtgrpo_cpu=default")
RUNS = {
    "healthy": (),
    "nothing to open": (f"{DATA}/no/train.parquet", "actor_rollout_ref.model.path=/no/model", f"{TURNS}.format=xml"),
    "no tool": (f"{TURNS}.tool_config_path=/no/tool.yaml",),
    "everywhere": (
        "trainer.turn.preflight=fast",
        "reward.turn.preset=paper_v3",
        f"{ROLLOUT}.n=1",
        f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_raw_agent",
        "data.max_prompt_length=8",
    ),
}


def composed(healthy: Healthy, *overrides: str) -> Any:
    return compose_config(CommandLine((*GROUPS, *healthy.overrides, *overrides)))


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_the_order_does_not_matter(overrides, healthy):
    config = composed(healthy, *overrides)
    expected = examine(Setup(config))
    for seed in range(4):
        checks = random.Random(seed).sample(CHECKS, len(CHECKS))
        assert examine(Setup(config), checks) == expected, [check.name for check in checks]


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_each_check_can_be_made_alone(overrides, healthy):
    config = composed(healthy, *overrides)
    together = examine(Setup(config))
    for check in CHECKS:
        alone = examine(Setup(config), [check])
        assert {finding.check for finding in alone} <= {check.name}
        of_it = [finding for finding in together if finding.check == check.name]
        # If several checks fail on the same thing, one finding is kept: the last, or that of the setting's own check.
        others = {finding.message for finding in together if finding.check != check.name}
        assert [finding for finding in alone if finding.message not in others] == of_it


DECIDES = (f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_decide_agent", "trainer.turn.decide.when=validation")


@pytest.mark.parametrize(
    ("check", "overrides"),
    [
        ("deciders", (*DECIDES, "trainer.turn.decide.by=posterior", "trainer.turn.decide.alpha=0")),
        ("trees", ("trainer.turn.branch.grow=random", "trainer.turn.branch.width=-1")),
        ("watch", ("trainer.turn.dump.groups=-1",)),
    ],
)
def test_a_setting_that_several_checks_read_fails_in_its_own(check, overrides, healthy):
    failed = [one for one in examine(Setup(composed(healthy, *overrides))) if one.status == "fail"]
    assert [one.check for one in failed] == [check], failed


def test_a_scorer_that_takes_something_else_is_not_called_fine_too(healthy):
    score = f"trainer.turn.decide.score={healthy.file('score.py', 'def few(turn): return 1')}:few"
    by = ("trainer.turn.decide.by=best", f"{ROLLOUT}.val_kwargs.temperature=1.0")
    (found,) = examine(Setup(composed(healthy, *DECIDES, *by, score)), named("deciders"))
    assert found.status == "fail" and "few takes (turn), which does not fit" in found.message


def test_what_is_looked_at_is_opened_once(healthy):
    setup = Setup(composed(healthy))
    assert setup.rows and setup.tools and setup.found and setup.builder is not None
    assert setup.rows is setup.rows and setup.found is setup.found
    with pytest.raises(AttributeError):
        setup.rows = []  # type: ignore[misc]


def test_questions_of_verls_tool_examples_are_fine_and_it_says_which_loop_they_get(healthy):
    file = healthy.questions("theirs", lambda row: row.update(agent_name="tool_agent"))
    (found,) = examine(Setup(composed(healthy, f"{DATA}{file}")), named("data"))
    said = "8 questions for training, 8 for validation; agent_name=tool_agent in rows means mtgrpo_tool_agent"
    assert (found.status, found.message) == ("ok", said)


def test_checks_are_chosen_by_what_they_need():
    config, full = checks_at_start("config"), checks_at_start("full")
    assert checks_at_start("off") == []
    assert {check.needs for check in config} == {"config"}
    assert set(config) < set(full) < set(CHECKS)
    assert [check.name for check in CHECKS if check not in full] == ["verl"]
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def stumbling(setup: Setup) -> Iterator[Finding]:
    yield Finding("models", "ok", "so far so good")
    raise KeyError("oops")


def absent(setup: Setup) -> Iterator[Finding]:
    raise AbsentError("no such tool", fix="install it")
    yield


def test_a_check_that_stumbles_stops_no_run(healthy, monkeypatch):
    setup = Setup(composed(healthy))
    (well, stumbled) = examine(setup, [Check("models", stumbling)])
    assert (well.message, stumbled.status) == ("so far so good", "warn")
    assert stumbled.message == "could not be checked: KeyError: 'oops'"
    failing = Check("judge", lambda setup: [Finding("judge", "fail", "bad", "mend it")])
    for checks in ([Check("models", stumbling), failing], [failing, Check("models", stumbling)]):
        assert [one.status for one in examine(setup, checks)] == ["ok", "skip", "fail"]


def test_what_is_not_here_may_be_elsewhere(healthy):
    for nodes, status in ((1, "fail"), (2, "warn")):
        (found,) = examine(Setup(composed(healthy, f"trainer.nnodes={nodes}")), [Check("tools", absent)])
        assert (found.status, found.fix) == (status, "install it")


def test_checks_by_name():
    assert [check.name for check in named("index", "turns")] == ["turns", "index"]


def test_a_tool_that_is_not_search_is_not_told_to_find_less(tmp_path):
    (tmp_path / "tools.py").write_text(
        "from verl.tools.function_tool import function_tool\n\n\n"
        "@function_tool\ndef weigh_it(thing: str) -> str:\n"
        '    """Weigh a thing.\n\n    Args:\n        thing: For example a stone.\n    """\n    return "3"\n'
    )
    overrides = (*GROUPS, f"{TURNS}.function_tool_path={tmp_path}/tools.py", "data.max_response_length=100")
    (found,) = examine(Setup(compose_config(CommandLine((*overrides, f"{MODEL}=/no/model")))), named("lengths"))
    assert found.message.startswith("weigh_it may return 4096 characters")
    assert found.fix == f"raise data.max_response_length, or lower {TURNS}.max_tool_response_length"


WEIGH = """
tools:
  - class_name: verl.tools.base_tool.BaseTool
    config: {type: native}
    tool_schema:
      type: function
      function:
        name: NAME
        description: Weigh a thing.
        parameters: {type: object, properties: {thing: {type: string, description: The thing.}}, required: [thing]}
"""


@pytest.mark.parametrize(
    ("name", "overrides", "warned"),
    [
        ("weigh_it", (), True),  # the group's paper_v1: it cannot see that a tool YAML names no search
        ("weigh_it", ("reward.turn.preset=paper_v2",), True),
        ("weigh_it", ("reward.turn.preset=tool_use",), False),
        ("weigh_it", ("reward.turn.pay=outcome", "trainer.turn.on_purpose=[reward.turn.pay]"), False),
        ("my_search", (), False),
    ],
)
def test_rewards_for_search_are_warned_of_where_no_tool_searches(tmp_path, name, overrides, warned):
    (tmp_path / "tools.yaml").write_text(WEIGH.replace("NAME", name))
    given = (*GROUPS, f"{TURNS}.tool_config_path={tmp_path}/tools.yaml", f"{MODEL}=/no/model", *overrides)
    (found,) = examine(Setup(compose_config(CommandLine(given))), named("tools"))
    assert found.status == ("warn" if warned else "ok")
    if warned:
        assert found.message.endswith("no tool of this run seems to search: weigh_it")
        assert found.fix.startswith("set reward.turn.preset=tool_use")
