"""Every default is the same in code, in the YAML files and in docs/reference.md, which is generated from them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("verl")

import yaml
from omegaconf import OmegaConf

from tests.verl_source import only_tested_version
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.integration.rollout.search_settings import SearchSettings
from verl_mtgrpo.integration.settings import TrainerTurnSettings, TurnRewardSettings
from verl_mtgrpo.own_code import load_file
from verl_mtgrpo.retrieval import HTTPRetriever, open_retriever
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.rewards.metric_names import (
    COMPONENT_METRICS,
    DECIDE_METRICS,
    ROLE_METRICS,
    ROLLOUT_METRICS,
    STEP_METRICS,
)
from verl_mtgrpo.settings import Settings

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "verl_mtgrpo" / "config"
GROUPS = {path.stem: path for path in sorted((CONFIG / "mtgrpo").glob("[!_]*.yaml"))}
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
# What a group takes from the estimator's paper; the function's own default is the neutral value.
FROM_THE_PAPER = {("gtpo", "discount"): (0.9, 1.0), ("bilevel_gae", "discount"): (0.95, 1.0)}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_file(ROOT / ".ci" / "reference.py")


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, without the marks of code."""
    (text,) = re.findall(rf"^##+ {section}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[part.strip().strip("`") for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def packaged(name: str) -> Any:
    return OmegaConf.load(CONFIG / name)


@only_tested_version
def test_the_page_is_what_the_generator_writes(generator):
    assert generator.reference() == PAGE, "run `make reference`"


def test_the_page_of_metrics_is_what_the_generator_writes(generator):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert generator.metrics_page() == page, "run `make reference`"
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert (
        len(lines)
        == len({**ROLLOUT_METRICS, **DECIDE_METRICS, **ROLE_METRICS, **STEP_METRICS, **COMPONENT_METRICS})
        > 60
    )
    assert not [line for line in lines if not line.rsplit("|", 2)[1].strip()]


def test_the_comments_of_our_settings_are_what_the_generator_writes(generator):
    for path, entries in generator.our_settings().items():
        assert path.read_text(encoding="utf-8") == generator.commented(path, entries), (
            f"run `make reference` for {path.name}"
        )


def test_every_row_has_a_meaning():
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(lines) > 100
    assert not [line for line in lines if not line.rsplit("|", 2)[1].strip()]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimators_defaults_are_those_of_its_group_and_of_the_page(name):
    by_hand = ESTIMATORS[name].knobs
    group = OmegaConf.to_container(packaged(f"mtgrpo/{name}.yaml").algorithm.turn)
    assert by_hand.keys() == group.keys()
    for knob, value in group.items():
        assert (value, by_hand[knob]) == FROM_THE_PAPER.get((name, knob), (value, value)), knob
    page = {
        key: (yaml.safe_load(of_group), yaml.safe_load(alone))
        for estimator, key, of_group, alone, _ in rows("Knobs of the estimators")
        if estimator == name
    }
    assert page == {f"algorithm.turn.{knob}": (value, by_hand[knob]) for knob, value in group.items()}


def leaves(settings: Settings, prefix: str) -> dict[str, Any]:
    """The values of a settings object by dotted key."""
    found: dict[str, Any] = {}
    for name, value in settings:
        inner = isinstance(value, Settings)
        found |= leaves(value, f"{prefix}.{name}") if inner else {f"{prefix}.{name}": value}
    return found


IN_CODE = {**leaves(TurnRewardSettings(), "reward.turn"), **leaves(TrainerTurnSettings(), "trainer.turn")}
NOT_IN_BASE = {
    "reward.turn.pay",  # each group's own
    "trainer.turn.preset",  # the group's name
    *leaves(JudgeSettings(), "reward.turn.judge"),  # only for the presets that ask a judge
}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_the_settings_are_those_of_the_groups_and_of_the_page():
    base = packaged("mtgrpo/_base.yaml")
    OmegaConf.update(base, "actor_rollout_ref.rollout.multi_turn.function_tool_path", None)  # verl's default
    for key, value in IN_CODE.items():
        in_yaml = OmegaConf.select(base, key)
        assert in_yaml == (None if key in NOT_IN_BASE else plain(value)), key
    written = {key for key, _, _ in rows("Rewards, checks, guards and dumps")}
    assert written == set(IN_CODE)
    for key, default, _ in rows("Rewards, checks, guards and dumps"):
        assert yaml.safe_load(default) == plain(IN_CODE[key]), key


def test_a_group_writes_its_name_and_what_it_pays():
    page = {name: (estimator, pay) for name, estimator, pay, *_ in rows("Config groups")}
    assert page.keys() == GROUPS.keys()
    for name, path in GROUPS.items():
        group = OmegaConf.load(path)
        assert group.trainer.turn.preset == name
        if "mhgpo" in group.defaults:  # which it extends
            group = OmegaConf.merge(OmegaConf.load(GROUPS["mhgpo"]), group)
        assert page[name] == (group.algorithm.adv_estimator, group.reward.turn.pay)


def test_the_search_tool_everywhere():
    config = packaged("tools/search_tool.yaml").tools[0].config
    in_code = dict(SearchSettings())
    in_yaml = OmegaConf.to_container(config)
    assert in_yaml.pop("index") == rows("The search tool")[1][1] == "${oc.env:MTGRPO_INDEX,null}"
    assert in_code.pop("index") is None
    assert in_yaml == in_code
    page = {key: yaml.safe_load(default) for key, default, _ in rows("The search tool") if key != "index"}
    assert page == in_code
    for function in (open_retriever, HTTPRetriever):
        parameters = inspect.signature(function).parameters
        for name in ("patience_s", "request_timeout_s", "concurrency"):
            assert parameters[name].default == in_code[name], f"{function.__name__} {name}"


def test_what_the_groups_change_of_verl_stands_on_the_page():
    page = {(key, who): value for key, who, value, *_ in rows("verl's settings in the groups")}
    for file, who in (("mtgrpo/_base.yaml", "all"), ("mtgrpo/_critic.yaml", "with a critic")):
        config = packaged(file)
        keys = [key for key, group in page if group == who]
        assert keys
        for key in keys:
            *folders, name = key.split(".")
            node = OmegaConf.to_container(OmegaConf.select(config, ".".join(folders)))  # references as they are
            assert node[name] == yaml.safe_load(page[key, who]), key


def test_the_generator_reads_comments_anchors_and_quotes(generator, tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(
        '# a header\na:\n  # above,\n  # in two lines\n  b: "x # y"\n  c: &d {e: 1}  # behind\nf: *d  # again\n'
    )
    assert [(one.key, one.value, one.comment) for one in generator.read_yaml(file)] == [
        ("a.b", '"x # y"', "above, in two lines"),
        ("a.c", "{e: 1}", "behind"),
        ("f", "as a.c", "again"),
    ]
    assert generator.header(file) == "a header"
