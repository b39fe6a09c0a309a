"""Share between folders the check of a test's cost, and fixtures that take time to make."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.costs import Costs, may_select

if TYPE_CHECKING:
    from tests.doctor.setups import Healthy


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Costs(), "costs")
    # On a machine that does other things too, how long one example takes says nothing.
    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip modules of which no test is selected: importing them would cost seconds, and import verl in ``make t``."""
    return None if may_select(config.option.markexpr, collection_path) else True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with a long module that is last by name: alone at the end, it would leave the other processes idle."""
    items.sort(key=lambda item: item.path.name != "test_try_step.py")


@pytest.fixture(scope="session", autouse=True)
def the_verl_in_front_counts_as_tested() -> Any:
    """Treat the verl of ``make test-verl-main`` as tested, so that tests of other things do not fail because of it."""
    from verl_mtgrpo.doctor import versions

    with pytest.MonkeyPatch.context() as monkeypatch:
        if versions.verl_in_front():
            monkeypatch.setattr(versions, "verl_in_front", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def yaml_is_parsed_once() -> Any:
    if "omegaconf" not in sys.modules:  # no test that has been collected composes
        yield
        return
    from tests.composed import parsing_once

    with parsing_once():
        yield


# ---- rollouts through verl's agent loop (tests/agent_loops.py)


@pytest.fixture(scope="module")
def config() -> Any:
    """Return the part of verl's config that an agent loop reads."""
    from tests.agent_loops import loop_config

    return loop_config()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tests.agent_loops import loop_tokenizer

    return loop_tokenizer()


@pytest.fixture(scope="module")
def tools() -> list[Any]:
    from tests.agent_loops import search_function

    return [search_function()]


# ---- set-ups of a run (tests/doctor/setups.py)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    from tests.doctor.setups import Healthy

    return Healthy(tmp_path_factory.mktemp("setup"))


@pytest.fixture
def surroundings(healthy: Healthy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a healthy set-up."""
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.setenv("MTGRPO_INDEX", str(healthy.index))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("VERL_USE_EXTERNAL_PLUGINS", raising=False)


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that the doctor has composed, as the trainer would get them."""
    from verl_mtgrpo.doctor import compose

    made: list[Any] = []
    original = compose.compose_config
    monkeypatch.setattr(compose, "compose_config", lambda line: made.append(original(line)) or made[-1])
    return made
