from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from verl_mtgrpo.cache import JsonCache
from verl_mtgrpo.errors import ConfigError


def test_values_stay_and_are_shared(tmp_path):
    one, other = JsonCache(tmp_path / "a" / "c.db"), JsonCache(tmp_path / "a" / "c.db")
    one.put("k", {"x": [1, 2.5, "é"]})
    assert other.get("k") == {"x": [1, 2.5, "é"]}
    assert other.get("unknown") is None
    other.put("k", 0)
    assert one.get("k") == 0


def test_keys_tell_questions_apart():
    assert JsonCache.key("a", 3, "b") == JsonCache.key("a", 3, "b")
    assert len({JsonCache.key("a", "bc"), JsonCache.key("ab", "c"), JsonCache.key("a", "b", "c")}) == 3


def test_a_damaged_value_counts_as_missing(tmp_path):
    JsonCache(tmp_path / "c.db").put("k", 1)
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("UPDATE kept SET value = '{half'")
    assert JsonCache(tmp_path / "c.db").get("k") is None


def test_many_writers(tmp_path):
    caches = [JsonCache(tmp_path / "c.db") for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: caches[n % 4].put(str(n), n), range(400)))
    assert [caches[0].get(str(n)) for n in range(400)] == list(range(400))


ENDLESS = """
import itertools, sys
from verl_mtgrpo.cache import JsonCache
cache = JsonCache(sys.argv[1])
for n in itertools.count():
    cache.put(str(n), {"n": n})
    print(n, flush=True)
"""


@pytest.mark.process
def test_a_killed_writer_loses_nothing_that_it_had_written(tmp_path):
    file = tmp_path / "c.db"
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(200)]
    process.kill()
    written = [
        int(line) for line in [*said, *process.communicate()[0].splitlines(keepends=True)] if line.endswith("\n")
    ]
    cache = JsonCache(file)
    assert len(written) >= 200
    assert [cache.get(str(n)) for n in written] == [{"n": n} for n in written]
    cache.put("after", 1)
    assert JsonCache(file).get("after") == 1


def test_a_full_disk_stops_the_keeping_and_not_the_run(tmp_path, caplog):
    cache = JsonCache(tmp_path / "c.db")
    cache.put("before", 1)
    cache._db.execute(f"PRAGMA max_page_count = {cache._db.execute('PRAGMA page_count').fetchone()[0]}")
    for n in range(3):
        cache.put(str(n), "x" * 100_000)
    assert cache.get("before") == 1
    assert cache.get("0") is None
    (record,) = caplog.records
    assert "can no longer be written: database or disk is full; nothing more is cached" in record.getMessage()


def test_a_path_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r"the cache .* cannot be used: .*; choose another path, or none"):
        JsonCache(tmp_path)
