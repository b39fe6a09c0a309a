"""Make a complete set-up on a CPU in a second, without any training, and the parts that break it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import verl_mtgrpo.config
from tests.retrieval.services import free_port
from verl_mtgrpo.cli.main import main
from verl_mtgrpo.data.rows import SYSTEM_PROMPTS, make_row, write_parquet
from verl_mtgrpo.demo.policy import CHAT_TEMPLATE, build_model, build_tokenizer
from verl_mtgrpo.demo.toy import PASSAGE, QUESTION, RIGHT
from verl_mtgrpo.retrieval import BM25Index, Passage

ROLLOUT = "actor_rollout_ref.rollout"
TURNS = f"{ROLLOUT}.multi_turn"
TOOL_YAML = Path(verl_mtgrpo.config.__path__[0]) / "tools" / "search_tool.yaml"


class Healthy:
    """A folder with a policy that was never trained, an index and questions, and the overrides of a run with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy, self.index = folder / "policy", folder / "index"
        tokenizer = build_tokenizer([QUESTION, PASSAGE.text, *SYSTEM_PROMPTS.values()], [RIGHT])
        model = build_model(tokenizer, seed=0)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(self.policy)
        tokenizer.save_pretrained(self.policy)
        BM25Index.build([PASSAGE], self.index, source="made by the test")
        for name in ("train", "val"):
            self.questions(name)
        self.overrides = (
            f"actor_rollout_ref.model.path={self.policy}",
            f"data.train_files={folder / 'train.parquet'}",
            f"data.val_files={folder / 'val.parquet'}",
            "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "data.max_prompt_length=512",
            "data.max_response_length=160",
            f"{ROLLOUT}.n=8",
            f"{TURNS}.max_assistant_turns=2",
            f"hydra.run.dir={folder / 'hydra'}",
        )

    def questions(self, name: str, change: Callable[[dict[str, Any]], Any] | None = None, *, format: str = "") -> Path:
        """Write eight rows, each changed by ``change``, with the system prompt of ``format``."""
        about = {"split": "train", "data_source": "toy", "system_prompt": SYSTEM_PROMPTS.get(format)}
        rows = [make_row(QUESTION, [RIGHT], index=n, id=str(n), **about) for n in range(8)]  # type: ignore[arg-type]
        for row in rows:
            if change:
                change(row)
        write_parquet(rows, self.folder / f"{name}.parquet")
        return self.folder / f"{name}.parquet"

    def tool(self, name: str, **settings: Any) -> str:
        """Return the override for a changed copy of the packaged tool YAML; ``called`` is the name of the tool."""
        whole = OmegaConf.load(TOOL_YAML)
        tool = whole.tools[0]
        tool.class_name = settings.pop("class_name", tool.class_name)
        tool.tool_schema.function.name = settings.pop("called", tool.tool_schema.function.name)
        tool.config = OmegaConf.merge(tool.config, settings)
        OmegaConf.save(whole, self.folder / f"{name}.yaml")
        return f"{TURNS}.tool_config_path={self.folder / f'{name}.yaml'}"

    def with_template(self, name: str, template: str | None) -> str:
        """Return the override for a policy with another chat template."""
        folder = shutil.copytree(self.policy, self.folder / name, dirs_exist_ok=True)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        if template:
            (folder / "chat_template.jinja").write_text(template)
        return f"actor_rollout_ref.model.path={folder}"

    def other_index(self, name: str, **changes: Any) -> Path:
        """Copy the index with a changed manifest."""
        folder = shutil.copytree(self.index, self.folder / name, dirs_exist_ok=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        return folder

    def long_index(self) -> Path:
        """Build an index with a single passage that is longer than a response may be."""
        text = "The tower is in Oslo. " * 120
        BM25Index.build([Passage("1", "Tower", text)], self.folder / "long", source="made by the test")
        return self.folder / "long"

    def file(self, name: str, text: str) -> Path:
        """Write a file in the folder."""
        (self.folder / name).write_text(text)
        return self.folder / name


def dead_url() -> str:
    """Return an address at which nothing listens."""
    return f"http://127.0.0.1:{free_port()}"


NO_TOOL_ROLE = CHAT_TEMPLATE.replace(
    "{%- for message in messages %}",
    "{%- for message in messages %}{% if message.role == 'tool' %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}",
)
DROPS_TOOL_MESSAGES = CHAT_TEMPLATE.replace(
    "{%- for message in messages %}<|im_start|>", "{%- for message in messages if message.role != 'tool' %}<|im_start|>"
)
# Like templates that show thoughts in the last turn only: a message after a turn changes how the turn is rendered.
CHANGES_EARLIER_TURNS = CHAT_TEMPLATE.replace(
    "{% if message.content is string %}", "{% if loop.last %}(last) {% endif %}{% if message.content is string %}"
)


def fake_package(folder: Path, name: str, version: str) -> Path:
    """Make a folder that, if it is first on the path, makes ``name`` look installed in this version."""
    info = folder / f"fake-{name}-{version}" / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return info.parent


JUDGE = ("reward.turn.preset=judge", "+reward.turn.judge.model=m")
DATA = "data.train_files="


@dataclass(frozen=True)
class Broken:
    """One mistake in a set-up.

    Attributes:
        name: The mistake.
        says: A regular expression that message and fix have to match.
        change: Overrides after those of the healthy set-up.
        make: Makes the broken part and returns more overrides.
        preset: The config group.
        env: Environment variables; None for one that is not set.
        package: Name and version of a package that looks installed.
        check: The check that fails.
        starts: True if the start of a run finds it too, and not Hydra, verl or pip before that.
    """

    name: str
    says: str
    change: tuple[str, ...] = ()
    make: Callable[[Healthy], str | tuple[str, ...]] | None = None
    preset: str = "mt_grpo"
    env: dict[str, str | None] = field(default_factory=dict)
    package: tuple[str, str] | None = None
    check: str = ""
    starts: bool = True


def broken(name: str, says: str, check: str, *change: str, **more: Any) -> Broken:
    """Return a mistake made by overrides, or by ``make``."""
    return Broken(name, says, change, check=check, **more)


def environment(name: str, says: str, check: str, **more: Any) -> Broken:
    """Return a mistake that shows before there is a config."""
    return broken(name, says, check, starts=False, **more)


def with_index(name: str, says: str, make: Callable[[Healthy], Any]) -> Broken:
    """Return a mistake in the index, which ``make`` makes."""
    return Broken(name, says, make=lambda run: run.tool("tool", index=str(make(run)), patience_s=1.0), check="index")


def with_rows(name: str, says: str, change: Callable[[dict[str, Any]], Any], *, check: str = "data") -> Broken:
    """Return a mistake that ``change`` makes in each training question."""
    return broken(name, says, check, make=lambda run: f"{DATA}{run.questions('broken', change)}")


def doctor(
    capsys: pytest.CaptureFixture[str], run: Healthy, *overrides: str, preset: str = "mt_grpo"
) -> tuple[int, Any]:
    """Return the exit status and the findings of ``mtgrpo doctor`` for the set-up with these overrides."""
    groups = ["hydra.searchpath=[pkg://verl_mtgrpo.config]", f"+mtgrpo={preset}", "+mtgrpo_cpu=default"]
    capsys.readouterr()
    code = main(["doctor", "--quick", "--json", "--", *groups, *run.overrides, *overrides])
    return code, json.loads(capsys.readouterr().out)["findings"]


def main_ppo(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"hydra.run.dir={folder}", *overrides]
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "VERL_PLATFORM": "", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200)
