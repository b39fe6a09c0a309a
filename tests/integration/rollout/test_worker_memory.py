"""Measure the memory of the agent loop workers of a real training run, which share one index.

The proportional set size (PSS) counts a page that n processes share as 1/n in each, so it can be added up.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.runs import make_assets, run
from verl_mtgrpo.demo.toy import HERMES, PASSAGE
from verl_mtgrpo.retrieval import BM25Index, Passage

pytestmark = pytest.mark.imports_verl

PASSAGES = 100_000


@pytest.mark.slow  # two training runs for a number that rarely changes
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_share_the_pages_of_the_index(tmp_path: Path, workers: int):
    assets = make_assets(tmp_path / "assets", HERMES)
    rng = random.Random(0)
    words = [f"word{n}" for n in range(20_000)]
    many = (Passage(f"x{n}", "", " ".join(rng.choices(words, k=60))) for n in range(PASSAGES))
    index = BM25Index.build([PASSAGE, *many], assets / "index", source="test")
    size = sum(file.stat().st_size for file in index.path.rglob("*") if file.is_file()) / 1e6
    sampler = Memory(tmp_path, index.path)
    with sampler:
        agents = f"actor_rollout_ref.rollout.agent.num_workers={workers}"
        result = run(assets, tmp_path, agents, "trainer.test_freq=-1")
    assert result.returncode == 0, result.tail()
    assert all(step["tool/used"] > 0 for step in result.steps.values())
    assert sampler.workers == workers
    print(
        f"{workers} workers, index {size:.0f} MB on disk: {sampler.total_mb:.0f} MB in all, "
        f"{sampler.index_mb:.1f} MB of them pages of the index"
    )
    # Copies in each worker would hold the index `workers` times over.
    assert 0 < sampler.index_mb <= size


class Memory:
    """Record the largest sums over the agent loop workers of a run, checked twice a second (Linux)."""

    def __init__(self, folder: Path, index: Path) -> None:
        self.mark, self.index = f"VERL_FILE_LOGGER_PATH={folder}".encode(), str(index)
        self.total_mb = self.index_mb = 0.0
        self.workers = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            found = list(filter(None, map(self._of_process, Path("/proc").iterdir())))
            self.workers = max(self.workers, len(found))
            self.total_mb = max(self.total_mb, sum(total for total, _ in found))
            self.index_mb = max(self.index_mb, sum(index for _, index in found))
            time.sleep(0.5)

    def _of_process(self, process: Path) -> tuple[float, float] | None:
        """Return (PSS, PSS of the index's pages) in MB; None if the process is not one of the run's workers."""
        with contextlib.suppress(OSError):
            if not process.name.isdigit() or not (process / "cmdline").read_bytes().startswith(b"ray::AgentLoopWorker"):
                return None
            if self.mark not in (process / "environ").read_bytes():
                return None
            total = of_index = 0.0
            inside = False
            for line in (process / "smaps").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes = float(line.split()[1])
                    total += kilobytes / 1024
                    of_index += kilobytes / 1024 * inside
                elif "-" in line.split(" ")[0]:  # "7f00-7f01 r--s 0 fe:00 12 /path"
                    inside = self.index in line
            return total, of_index
        return None
