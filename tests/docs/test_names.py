"""Config keys, files and modules that the documentation names exist."""

from __future__ import annotations

import re
from functools import cache
from inspect import signature

import pytest

pytest.importorskip("verl")

from omegaconf import OmegaConf

from tests.composed import composed
from tests.docs.pages import OTHERS_PAGE, PAGES, ROOT, code_spans, name_of
from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.rewards.judge_client import JudgeSettings
from verl_mtgrpo.roles import Role

pytestmark = pytest.mark.compose

OPEN = ("data.apply_chat_template_kwargs.", "trainer.turn.environment.options.", "trainer.turn.dense.")
"""Nodes that accept any argument: of the chat template, of an environment, of a dense reward."""
COLUMNS = ("reward_model.ground_truth",)
"""Columns of verl's question files, which are not config keys."""
TREES = tuple(f"+mtgrpo={name}" for name, function in ESTIMATORS.items() if "node_path" in function.fields)
GROUPS = (
    "+mtgrpo=mt_grpo",
    "+mtgrpo=turn_gae",
    "+mtgrpo=bilevel_gae",
    "+mtgrpo=mt_ppo",
    "+mtgrpo=pair_dpo",
    "+mtgrpo=pair_rloo",
    "+mtgrpo=mhgpo",
    "+mtgrpo_cpu=vllm",
    *TREES,
)


@cache
def keys() -> frozenset[str]:
    """Return every key of verl's config with our groups, and keys of settings that are in no group."""
    found = {f"reward.turn.judge.{name}" for name in signature(JudgeSettings).parameters}
    for group in GROUPS:
        found |= set(_paths(composed(group)))
    return frozenset(found)


def _paths(node, path=""):
    for key in node:
        yield (here := f"{path}{key}")
        if OmegaConf.is_dict(value := node._get_node(key)) and not value._is_none():
            yield from _paths(value, f"{here}.")


def spans(page):
    """Return code in the text; on the page about other projects, only that in the right columns."""
    if page != OTHERS_PAGE:
        return code_spans(page)
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.split(" | ", 1)[-1])]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_config_keys_exist(page):
    roots = {key.partition(".")[0] for key in keys()}
    for key in re.findall(r"(?<![\w/])[+~]?((?:…|\w+\.)[\w.]+\w)(?==|\.\*| |$)", "\n".join(spans(page)), re.MULTILINE):
        path = key.removeprefix("…")
        if key.startswith("…"):
            assert any(one.endswith(f".{path}") for one in keys()), f"{key} in {name_of(page)}"
        elif of_role := re.fullmatch(r"trainer\.turn\.roles\.names\.\w+\.(\w+)", path):
            assert of_role[1] in Role.model_fields, f"{key} in {name_of(page)}"
        elif path.partition(".")[0] in roots and path not in COLUMNS and not path.startswith(OPEN):
            assert path in keys(), f"{key} in {name_of(page)}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != OTHERS_PAGE], ids=name_of)
def test_files_and_modules_exist(page):
    for span in code_spans(page):
        if re.fullmatch(r"(?:\w+/)+[\w.]+\.(?:py|md|sh|yaml|sbatch)", span):
            assert any((place / span).is_file() for place in (ROOT, ROOT / "verl_mtgrpo")), f"{span} in {name_of(page)}"
        for name in re.findall(r"\bverl_mtgrpo(?:\.\w+)+", span):
            assert exists(name), f"{name} in {name_of(page)}"


def exists(name: str) -> bool:
    """Return True if a dotted name is a module, or is defined or imported in one; nothing is imported here."""
    place, parts = ROOT, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if not parts:
        return (place / "__init__.py").is_file()
    module = place / f"{parts[0]}.py"
    rest = parts[1:] if module.is_file() else parts
    source = (module if module.is_file() else place / "__init__.py").read_text(encoding="utf-8")
    return len(rest) < 2 and all(re.search(rf"(^|\bclass |\bdef |\bimport .*){one}\b", source, re.M) for one in rest)


def test_a_wrong_name_is_found():
    assert exists("verl_mtgrpo.errors.DropRollout") and exists("verl_mtgrpo.cpu.vllm_worker")
    assert not exists("verl_mtgrpo.integration.no_such_part") and not exists("verl_mtgrpo.errors.NoSuchError")
    assert "algorithm.turn.no_such_knob" not in keys()
