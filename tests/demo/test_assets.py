from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import pyarrow.parquet as pq
import yaml

from verl_mtgrpo.demo.assets import AssetSettings, DemoAssets, prepare_demo
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import WorldSize
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.retrieval.bm25 import BM25Index

pytestmark = pytest.mark.heavy

TINY = AssetSettings(
    size=WorldSize(entities_per_kind=8, famous_per_kind=2, train_questions=40, val_questions=8),
    warmup=WarmupSettings(drill_steps=1, habit_steps=1, batch_size=4, warmup_steps=1),
    check_samples=1,
)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> DemoAssets:
    return prepare_demo(tmp_path_factory.mktemp("demo") / "made", seed=3, settings=TINY)


def test_all_parts_are_there_and_fit_together(assets: DemoAssets):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = pq.read_table(assets.train_file).to_pylist()
    assert len(rows) == 40
    assert len(pq.read_table(assets.val_file)) == 8
    assert [message["role"] for message in rows[0]["prompt"]] == ["user"]
    assert len(BM25Index.open(assets.index)) == 8 * 4 * 2
    tokenizer = AutoTokenizer.from_pretrained(assets.policy)
    model = AutoModelForCausalLM.from_pretrained(assets.policy)
    assert model.config.vocab_size == len(tokenizer)
    assert len(tokenizer.encode(" " + rows[0]["reward_model"]["ground_truth"]["target"][0])) == 1
    tool = yaml.safe_load(assets.tool_config.read_text())["tools"][0]
    assert (tool["config"]["k"], tool["config"]["template"]) == (TINY.k, TINY.template)
    assert tool["tool_schema"]["function"]["name"] == "search"


def test_the_manifest_says_what_was_made_and_how_it_behaves(assets: DemoAssets):
    manifest = assets.manifest
    assert manifest == json.loads((assets.policy.parent / "demo.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["settings"]["warmup"]["drill_steps"] == 1
    assert set(manifest["seconds"]) == {"world", "model", "warm-up", "check"}
    assert {"exact_match", "exact_match_closed_book", "tool_rate", "exact_match_with_tool"} <= set(manifest["start"])
    assert all(0 <= share <= 1 for share in manifest["start"].values())
    assert "torch" in manifest["made_with"]


def weights(assets: DemoAssets) -> bytes:
    return (assets.policy / "model.safetensors").read_bytes()


def test_a_second_call_reuses_and_equal_seeds_make_equal_assets(assets: DemoAssets, tmp_path: Path):
    stamp = (assets.policy / "model.safetensors").stat().st_mtime_ns
    assert prepare_demo(assets.policy.parent, seed=3, settings=TINY) == assets
    assert (assets.policy / "model.safetensors").stat().st_mtime_ns == stamp

    again = prepare_demo(tmp_path / "again", seed=3, settings=TINY)
    assert weights(again) == weights(assets)
    for name in ("train_file", "val_file", "tool_config"):
        assert getattr(again, name).read_bytes() == getattr(assets, name).read_bytes()
    assert (again.policy / "tokenizer.json").read_bytes() == (assets.policy / "tokenizer.json").read_bytes()
    assert again.manifest["start"] == assets.manifest["start"]


def test_other_seeds_and_settings_replace_what_is_there(assets: DemoAssets, tmp_path: Path):
    out = shutil.copytree(assets.policy.parent, tmp_path / "demo")
    first = weights(assets)
    second = prepare_demo(out, seed=1, settings=TINY)
    assert second.manifest["seed"] == 1
    assert weights(second) != first
    third = prepare_demo(out, seed=1, settings=replace(TINY, k=1))
    assert third.manifest["settings"]["k"] == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".unfinished")]


@pytest.mark.process
def test_a_killed_build_is_done_again(tmp_path: Path):
    out = tmp_path / "demo"
    code = (
        "from dataclasses import replace; from pathlib import Path; import sys;"
        "from tests.demo.test_assets import TINY; from verl_mtgrpo.demo.assets import prepare_demo;"
        "slow = replace(TINY, warmup=replace(TINY.warmup, drill_steps=100_000));"
        "prepare_demo(Path(sys.argv[1]), settings=slow)"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=root, start_new_session=True)
    draft = tmp_path / ".demo.unfinished"
    deadline = time.monotonic() + 60
    while not (draft / "index" / "manifest.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert draft.exists() and not out.exists()
    assert prepare_demo(out, settings=TINY).policy.is_dir()
    assert not draft.exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds something that is not a demo of verl-mtgrpo; choose another folder"):
        prepare_demo(tmp_path, settings=TINY)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
