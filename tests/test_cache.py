from __future__ import annotations

import sqlite3
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


def test_a_path_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r"the cache .* cannot be used: .*; give another path, or none"):
        JsonCache(tmp_path)
