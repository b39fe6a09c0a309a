from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")

from verl.tools.tool_registry import initialize_tools_from_config

import verl_mtgrpo
from verl_mtgrpo.errors import ConfigError, IndexFormatError
from verl_mtgrpo.integration.rollout.search_tool import SearchTool
from verl_mtgrpo.retrieval import NOTHING_FOUND, BM25Index, Passage

pytestmark = pytest.mark.imports_verl

TOOL_YAML = Path(verl_mtgrpo.__file__).parent / "config" / "tools" / "search_tool.yaml"
CORPUS = [
    Passage("p1", "Velm", "Velm is a harbour town with a lighthouse."),
    Passage("p2", "Orsa Kint", "Orsa Kint built the lighthouse."),
]


@pytest.fixture
def index(tmp_path: Path) -> BM25Index:
    return BM25Index.build(CORPUS, tmp_path / "index", source="test")


@pytest.fixture
def tool(index: BM25Index, monkeypatch: pytest.MonkeyPatch) -> SearchTool:
    monkeypatch.setenv("MTGRPO_INDEX", str(index.path))
    (made,) = initialize_tools_from_config(str(TOOL_YAML))
    return made


def call(tool: SearchTool, arguments: Any) -> tuple[str, dict[str, Any]]:
    response, reward, info = asyncio.run(tool.execute("instance", arguments))
    assert reward == 0.0
    assert info["latency_s"] >= 0
    return response.text, info


def test_the_packaged_yaml_makes_the_tool(tool: SearchTool):
    schema = tool.get_openai_tool_schema().model_dump(exclude_unset=True, exclude_none=True)
    assert tool.name == schema["function"]["name"] == "search"
    assert schema["function"]["parameters"]["required"] == ["query"]
    assert list(schema["function"]["parameters"]["properties"]) == ["query"]


def test_a_search(tool: SearchTool):
    text, info = call(tool, {"query": "Who built the lighthouse?"})
    assert text == (
        "Doc 1 (Title: Orsa Kint) Orsa Kint built the lighthouse.\n"
        "Doc 2 (Title: Velm) Velm is a harbour town with a lighthouse."
    )
    assert (info["ok"], info["error_kind"]) == (True, None)
    first = info["documents"][0]
    assert (first["id"], first["title"], first["text"]) == ("p2", "Orsa Kint", "Orsa Kint built the lighthouse.")
    assert first["score"] > info["documents"][1]["score"] > 0
    json.dumps(info)


def test_nothing_found_is_a_successful_search(tool: SearchTool):
    text, info = call(tool, {"query": "zzz"})
    assert text == NOTHING_FOUND
    assert (info["ok"], info["error_kind"], info["documents"]) == (True, "no_hits", [])


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({}, "bad_arguments", "query is missing"),
        ({"query": None}, "bad_arguments", "query is missing"),
        ({"query": ["lighthouse"]}, "bad_arguments", "query is a list"),
        ({"query": 7}, "bad_arguments", "query is a int"),
        (["lighthouse"], "bad_arguments", "query is missing"),
        ("lighthouse", "bad_arguments", "query is missing"),
        ({"query": " \n"}, "no_query", "query is empty"),
    ],
)
def test_calls_that_are_no_search(tool: SearchTool, arguments: Any, kind: str, message: str):
    text, info = call(tool, arguments)
    assert message in text
    assert (info["ok"], info["error_kind"], info["documents"]) == (False, kind, [])


@pytest.mark.parametrize(
    "query", ['NOT ( "', "\ud800 tower", "x" * 1_000_000, "a\x00b", "🗼", "../../etc/passwd", "id:1 OR *:*"]
)
def test_hostile_queries_are_searches(tool: SearchTool, query: str):
    assert call(tool, {"query": query, "topk": 10**9})[1]["ok"]


def test_settings(index: BM25Index):
    config = {"type": "native", "index": str(index.path), "k": 1, "max_chars": 20, "template": "{rank}. {text}"}
    tool = SearchTool(config, None)
    text, info = call(tool, {"query": "lighthouse"})
    assert text == "1. Orsa Kint ..."
    assert [document["text"] for document in info["documents"]] == ["Orsa Kint built the lighthouse."]


def test_an_index_that_fails_is_an_outage_and_not_an_empty_answer(tool: SearchTool, index: BM25Index):
    tool._index = pickle.loads(pickle.dumps(index))
    shutil.rmtree(index.path)
    text, info = call(tool, {"query": "lighthouse"})
    assert text == "Error: the search engine is down."
    assert (info["ok"], info["error_kind"], info["documents"]) == (False, "bad_index", [])
    assert info["on_outage"] == "drop"
    assert "there is no index at" in info["outage"]


def test_a_slow_search_does_not_stall_the_event_loop(tool: SearchTool, index: BM25Index, monkeypatch):
    search = index.search

    def slow(queries: list[str], k: int) -> list[list[Passage]]:
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.3)
        return search(queries, k)

    tool._index = index
    monkeypatch.setattr(index, "search", slow)

    async def search_and_count() -> int:
        searching = asyncio.create_task(tool.execute("instance", {"query": "lighthouse"}))
        beats = 0
        while not searching.done():
            await asyncio.sleep(0.01)
            beats += 1
        assert (await searching)[2]["ok"]
        return beats

    assert asyncio.run(search_and_count()) >= 5


def test_answers_of_concurrent_rollouts_are_not_mixed(tmp_path: Path):
    passages = [Passage(str(number), f"entity{number}", f"the code is code{number}") for number in range(300)]
    index = BM25Index.build(passages, tmp_path / "many", source="many")
    tool = SearchTool({"type": "native", "index": str(index.path), "k": 1}, None)

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(tool.execute(str(n), {"query": f"entity{n}"}) for n in range(300)))

    for number, (response, _, info) in enumerate(asyncio.run(all_at_once())):
        assert info["documents"][0]["id"] == str(number)
        assert response.text == f"Doc 1 (Title: entity{number}) the code is code{number}"


# ---- settings that stop the run before it starts


def test_no_index_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MTGRPO_INDEX", raising=False)
    with pytest.raises(ConfigError, match=r"no index; set the environment variable MTGRPO_INDEX .*mtgrpo index"):
        initialize_tools_from_config(str(TOOL_YAML))


def test_index_is_missing_or_foreign(tmp_path: Path):
    with pytest.raises(IndexFormatError, match=r"search tool: there is no index at .*mtgrpo index CORPUS"):
        SearchTool({"index": str(tmp_path / "missing")}, None)
    with pytest.raises(IndexFormatError, match=r"not an index of verl-mtgrpo"):
        SearchTool({"index": str(tmp_path)}, None)
    with pytest.raises(IndexFormatError, match=r"'some/where' is relative; workers need an absolute one"):
        SearchTool({"index": "some/where"}, None)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"topk": 5}, r"search tool has unknown keys \['topk'\]; known keys and their defaults: type .*k \(3\), "),
        ({"k": 0}, "config.k of the search tool is 0, expected at least 1"),
        ({"k": "3"}, "k of the search tool is '3', expected a whole number like 3"),
        ({"k": True}, "k of the search tool is True, expected"),
        ({"max_searches": -1}, "max_searches of the search tool is -1, expected at least 0"),
        ({"patience_s": 0}, "patience_s of the search tool is 0, expected more than 0"),
        ({"on_outage": "ignore"}, r"on_outage of the search tool is 'ignore', expected one of \('drop', 'raise'\)"),
        ({"cache": "/proc/no/such"}, "cache /proc/no/such cannot be used"),
        ({"max_chars": 0}, "max_chars of the search tool is 0, expected .*or null"),
        ({"template": "{rank}"}, "does not show the"),
    ],
)
def test_bad_settings(index: BM25Index, change: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        SearchTool({"type": "native", "index": str(index.path), **change}, None)
