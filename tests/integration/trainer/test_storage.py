"""Dumps and checkpoints that cannot be written; /dev/full is a disk that is full."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("verl")

from ray.exceptions import ActorDiedError
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from verl_mtgrpo.checkpoints import last_checkpoint
from verl_mtgrpo.errors import ConfigError, StorageError
from verl_mtgrpo.integration.trainer.storage import _explained, check_last_checkpoint
from verl_mtgrpo.integration.trainer.trainer import TurnTrainerSync

pytestmark = pytest.mark.imports_verl

ROWS = (["question"] * 3, ["answer"] * 3, [None] * 3, [1.0] * 3, {"uid": ["a", "b", "c"]})


@pytest.fixture
def trainer() -> Any:
    """verl's trainer with what its dumps need, and no models."""
    made = TurnTrainerSync.__new__(TurnTrainerSync)
    made._init_dump_executor()
    made._dumped = {}
    return made


def dump(trainer: Any, folder: Path, step: int) -> None:
    trainer.global_steps = step
    trainer._dump_generations(*ROWS, str(folder))
    wait(trainer._dump_futures)


def test_a_dump_on_a_full_disk_stops_the_run_before_its_next_step(trainer: Any, tmp_path: Path):
    (tmp_path / "2.jsonl").symlink_to("/dev/full")
    dump(trainer, tmp_path, 1)
    trainer.on_step_begin()
    dump(trainer, tmp_path, 2)
    expected = rf"step 2 could not be written to {tmp_path}/2.jsonl: No space left on device; [\d,]+ MB are free there"
    with pytest.raises(StorageError, match=expected):
        trainer.on_step_begin()
    assert [path.name for path in tmp_path.iterdir()] == ["1.jsonl"], "no half of a file is left"
    assert len([json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]) == 3


def test_a_failed_dump_does_not_cut_off_the_step_that_is_being_dumped(trainer: Any, tmp_path: Path):
    (tmp_path / "2.jsonl").symlink_to("/dev/full")
    dump(trainer, tmp_path, 2)
    dump(trainer, tmp_path, 3)  # verl would raise here, before it logs step 3
    assert (tmp_path / "3.jsonl").exists()
    with pytest.raises(StorageError, match="step 2 could not be written"):
        trainer.on_step_begin()


def test_the_last_dump_is_not_forgotten(trainer: Any, tmp_path: Path):
    (tmp_path / "4.jsonl").symlink_to("/dev/full")
    dump(trainer, tmp_path, 4)
    with pytest.raises(StorageError, match="step 4 could not be written"):
        trainer._shutdown_dump_executor()


def checkpoints(folder: Path, *steps: int, tracker: str | None) -> SimpleNamespace:
    for step in steps:
        (folder / f"global_step_{step}").mkdir()
    if tracker is not None:
        (folder / "latest_checkpointed_iteration.txt").write_text(tracker)
    return SimpleNamespace(default_local_dir=str(folder), resume_mode="auto")


def test_a_checkpoint_that_is_there_is_the_one_that_verl_takes(tmp_path: Path):
    check_last_checkpoint(checkpoints(tmp_path, 5, 10, 15, tracker="10"))
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_10")
    assert last_checkpoint(tmp_path) == 10


def test_a_run_without_any_checkpoint_begins(tmp_path: Path):
    check_last_checkpoint(checkpoints(tmp_path, tracker=None))
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(("tracker", "said"), [("20", "'20'"), ("", "''"), ("2\x00", "'2")])
def test_a_checkpoint_that_is_named_and_not_there_stops_the_start(tmp_path: Path, tracker: str, said: str):
    trainer = checkpoints(tmp_path, 5, 10, tracker=tracker)
    with pytest.raises(ConfigError, match=rf"says {said}.*\(found: 5, 10\), so verl would start over at step 0"):
        check_last_checkpoint(trainer)
    trainer.resume_mode = "disable"
    check_last_checkpoint(trainer)


def test_a_checkpoint_that_cannot_be_written_says_what_is_left(tmp_path: Path):
    checkpoints(tmp_path, 5, tracker="5")
    expected = r"step 10 .* written completely, as on a full disk \(RuntimeError: \[enforce fail .*step 5 is complete"
    with pytest.raises(StorageError, match=expected) as raised, _explained(tmp_path, 10):
        try:
            torch.save(torch.zeros(10**5), "/dev/full")
        except RuntimeError as error:  # as Ray hands it on
            raise RuntimeError(f"Traceback\nRuntimeError: {error}\n\n") from error
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value), "Ray sends it on"
    with pytest.raises(StorageError, match="that of step 5 is damaged too"), _explained(tmp_path, 10):
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("")  # as open() leaves it on a full disk
        raise OSError(28, "No space left on device")
    with pytest.raises(StorageError, match="there is no earlier one"), _explained(tmp_path / "new", 10):
        raise OSError(28, "No space left on device")
    with pytest.raises(ActorDiedError), _explained(tmp_path, 10):
        raise ActorDiedError()
