"""Files and folders that are there whole or not at all, and one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from verl_mtgrpo.atomic import atomic_folder, atomic_write, is_draft, lock_beside


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_at_the_end(tmp_path: Path):
    path = tmp_path / "a.json"
    for text in ("one", "two"):
        with atomic_write(path) as draft:
            draft.write_text(text)
            assert is_draft(draft.name, of="a.json")
            assert (path.read_text() if path.exists() else "") == ("one" if text == "two" else "")
        assert path.read_text() == text
    assert names(tmp_path) == {"a.json"}


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as draft:
        draft.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old" and names(tmp_path) == {"a.json"}


@pytest.mark.parametrize("name", ["a.json", ".a.json", ".b.json.7.part", "a.json.7.part", ".a.json.lock"])
def test_what_is_no_draft(name: str):
    assert not is_draft(name, of="a.json")


def test_a_folder_is_replaced_whole(tmp_path: Path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "old").touch()
    (tmp_path / ".demo.unfinished").mkdir()
    (tmp_path / ".demo.unfinished" / "of a killed process").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(folder) as draft:
        _ = 1 / 0
    assert names(tmp_path) == {"demo"} and names(folder) == {"old"}
    with atomic_folder(folder) as draft:
        (draft / "new").touch()
        assert names(folder) == {"old"}
    assert names(tmp_path) == {"demo"} and names(folder) == {"new"}


@pytest.mark.process
def test_one_process_at_a_time_and_a_killed_one_holds_nothing(tmp_path: Path):
    from filelock import Timeout

    held = f"""if True:
        import time
        from pathlib import Path
        from verl_mtgrpo.atomic import lock_beside
        with lock_beside(Path({str(tmp_path / "below" / "demo")!r})):
            print("held", flush=True)
            time.sleep(60)
    """
    other = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        lock = lock_beside(tmp_path / "below" / "demo")
        with pytest.raises(Timeout):
            lock.acquire(timeout=0.1)
    finally:
        other.kill()
        other.communicate()
    with lock.acquire(timeout=10):
        pass
