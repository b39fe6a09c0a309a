"""Let the search fail and follow it from the tool to the metrics; test the tool's memory of a rollout."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("verl")

from verl.experimental.agent_loop.tool_agent_loop import AgentData, ToolAgentLoop
from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, function_tool
from verl.tools.schemas import ToolResponse

from tests.agent_loops import GOOD, final_answer, run, search_tool, transcript_of
from tests.retrieval.services import FAULTY, build_index, serving
from verl_mtgrpo.errors import ConfigError, DropRollout, RetrievalBusy, RetrievalError
from verl_mtgrpo.integration.reward_manager import refuse_unfinished
from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.search_tool import SearchTool, fingerprint_for
from verl_mtgrpo.integration.trainer.accounting import Batch, share_failed, warn_of_outages
from verl_mtgrpo.retrieval import BM25Index, HTTPRetriever
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, TurnRewards
from verl_mtgrpo.rewards.measures import charge_repeats, tool_trouble, tool_use

pytestmark = [pytest.mark.process, pytest.mark.network, pytest.mark.compose]


def broken(index: BM25Index, **settings: Any) -> SearchTool:
    """Return a real tool whose index is deleted while it is open."""
    tool = search_tool(index, **settings)
    tool._index = pickle.loads(pickle.dumps(index))
    shutil.rmtree(index.path)
    return tool


def search(tool: SearchTool, query: Any, rollout: Any = None) -> tuple[str, dict[str, Any]]:
    response, _, info = asyncio.run(tool.execute("instance", {"query": query}, agent_data=rollout))
    return response.text, info


# ---- from the tool to the metrics


def test_drop_ends_the_rollout_and_takes_it_out(config, tokenizer, index):
    output = run(TurnToolAgentLoop, config, tokenizer, [broken(index)], script=[GOOD, final_answer("never said")])
    transcript = transcript_of(output)
    assert (len(transcript.turns), transcript.end_reason) == (1, "outage")
    (call,) = transcript.turns[0].tool_calls
    assert (call.ok, call.error_kind, call.result) == (False, "bad_index", "Error: the search engine is down.")
    assert "there is no index at" in call.error
    with pytest.raises(DropRollout, match="there is no index at"):
        refuse_unfinished(transcript)
    trouble = tool_trouble(transcript)
    assert (trouble["tool/outage"], trouble["tool/failures"], trouble["tool/errors/bad_index"]) == (1.0, 1.0, 1.0)


def test_a_tool_of_ones_own_that_fails_is_no_outage(config, tokenizer):
    @function_tool
    def search(query: str):
        """Search.

        Args:
            query: What to look for.
        """
        return ToolResponse(text="Error: your program ran too long."), 0.0, {"ok": False, "error_kind": "timeout"}

    tool = FUNCTION_TOOL_REGISTRY.pop("search")  # leave verl's global registry as it was
    output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=[GOOD, final_answer("Oslo")])
    transcript = transcript_of(output)
    assert (len(transcript.turns), transcript.end_reason) == (2, "answered")
    assert transcript.turns[0].tool_calls[0].error_kind == "timeout"


def test_raise_fails_the_rollout(config, tokenizer, index):
    tool = broken(index, on_outage="raise")
    with pytest.raises(RetrievalError, match=r"tool 'search' is down: .*there is no index at"):
        run(TurnToolAgentLoop, config, tokenizer, [tool], script=[GOOD])


def test_one_outage_among_parallel_calls_is_an_outage(config, tokenizer, index):
    tool = broken(index)
    output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=[GOOD + GOOD, "x"], max_parallel_calls=2)
    assert transcript_of(output).end_reason == "outage"
    assert len(transcript_of(output).turns[0].tool_calls) == 2


def test_a_rollout_without_outage_is_scored():
    refuse_unfinished(
        Transcript((Turn("x", (0, 1), (ToolCall("search", "{}", ok=False, error_kind="no_query"),)),), "answered")
    )


def test_measures_of_calls():
    calls = (
        ToolCall("search", "{}", error_kind="no_hits", latency_s=0.1),
        ToolCall("search", "{}", faults=("timeout", "busy", "timeout"), latency_s=2.0, repeat=True),
        ToolCall("lookup", "{}", ok=False, error_kind="unknown_tool"),
        ToolCall("mine", "{}", ok=False, error_kind="a kind of my own"),
        ToolCall("search", "{}", ok=False, error_kind="busy", faults=("timeout", "busy")),
    )
    transcript = Transcript((Turn("x", (0, 1), calls), Turn("y", (2, 3))), "answered")
    trouble = {name: value for name, value in tool_trouble(transcript).items() if value}
    assert trouble == {
        "tool/calls": 5.0,
        "tool/failures": 3.0,
        "tool/retries": 4.0,
        "tool/no_hits": 1.0,
        "tool/errors/unknown_tool": 1.0,
        "tool/errors/tool_error": 1.0,
        "tool/errors/busy": 1.0,
        "tool/retried/timeout": 3.0,
        "tool/retried/busy": 1.0,
        "tool/latency_s": 2.0,
    }
    assert tool_use(transcript) == {"tool/used": 1.0, "tool/success": 0.4, "tool/repeats": 1.0}
    assert tool_trouble(Transcript((), "answered"))["tool/latency_s"] is None


def test_rollouts_that_failed_are_missing_and_counted():
    # 2 prompts of 4 rollouts; one rollout has two outputs, two are missing
    keys = ["a_0_0", "a_1_0", "a_2_0", "a_2_1", "a_3_0", "b_0_0", "b_3_0"]
    assert share_failed(Batch(keys, 8)) == {"outcome/failed": pytest.approx(2 / 8)}


@pytest.mark.parametrize(
    ("failed", "outage", "loud"), [(0.0, 0.05, False), (0.0, 0.06, True), (0.06, 0.0, True), (0.03, 0.03, True)]
)
def test_above_five_percent_an_error_says_so(caplog, failed, outage, loud):
    measured = {"outcome/failed": failed, "tool/outage": outage, "tool/errors/timeout": 0.5, "tool/failures": 0.6}
    with caplog.at_level(logging.ERROR):
        warn_of_outages(measured, 7)
    assert bool(caplog.text) == loud
    if loud:
        assert "step 7: 6% of the rollouts are lost" in caplog.text
        assert "tool/errors/timeout 0.5" in caplog.text


# ---- the tool alone


def test_a_search_that_hangs_ends_as_a_timeout(index, monkeypatch):
    tool = search_tool(index, patience_s=0.1)
    monkeypatch.setattr("verl_mtgrpo.integration.rollout.search_tool._GRACE_S", 0.1)
    over = threading.Event()
    monkeypatch.setattr(tool._index, "search", lambda queries, k: over.wait())

    async def execute():
        try:
            return await tool.execute("instance", {"query": "tower"})
        finally:
            over.set()  # otherwise the searching thread would never end

    response, _, info = asyncio.run(execute())
    assert (info["error_kind"], response.text) == ("timeout", "Error: the search engine is down.")
    assert "within 0.2 s, including waiting for a free slot" in info["outage"]


def test_the_kinds_of_failed_tries_are_told(index):
    class Failing:
        """Takes the place of a search service's client, and fails like it."""

        fingerprint = ""

        async def ask(self, queries, k):
            error = RetrievalBusy("overloaded")
            error.faults = ("timeout", "busy")
            raise error

    tool = search_tool(index)
    tool._index = Failing()
    _, info = search(tool, "tower")
    assert (info["error_kind"], info["faults"], info["outage"]) == ("busy", ("timeout", "busy"), "overloaded")


def agent_data() -> AgentData:
    """Return verl's object for a rollout, which its loops pass to tools."""
    return AgentData([], [], [], None, None, {}, "request", {})


def test_a_rollouts_searches_are_remembered_and_limited(index):
    tool = search_tool(index, max_searches=3)
    one, other = agent_data(), agent_data()
    repeats = [search(tool, query, one)[1]["repeat"] for query in ("Tower 3", "tower  3?", "Tower 4")]
    assert repeats == [False, True, False]
    text, info = search(tool, "Tower 5", one)
    assert (info["ok"], info["error_kind"]) == (False, "search_limit")
    assert text == "Error: this was search 4 of 3 allowed; answer with what you have."
    assert search(tool, "Tower 3", other)[1]["repeat"] is False, "another rollout"


def test_each_rollout_of_our_loop_has_a_record_of_its_own(config, tokenizer, index):
    tool, script = search_tool(index, max_searches=2), [GOOD, GOOD, GOOD, final_answer("Oslo")]
    for _ in range(2):
        output = run(TurnToolAgentLoop, config, tokenizer, [tool], script=script, response_length=2000)
        calls = [call for turn in transcript_of(output).turns for call in turn.tool_calls]
        assert [call.repeat for call in calls] == [False, True, False]
        assert [call.error_kind for call in calls] == [None, None, "search_limit"]


def test_verls_own_loop_limits_searches_too(config, tokenizer, index):
    tool, script = search_tool(index, max_searches=1), [GOOD, GOOD, final_answer("Oslo")]
    for _ in range(2):
        output = run(ToolAgentLoop, config, tokenizer, [tool], script=script, response_length=2000)
        read = tokenizer.decode(output.response_ids)
        assert read.count("Doc 1") == 1
        assert set(output.extra_fields) <= {"global_steps", "turn_scores", "tool_rewards"}, "nothing of ours travels"


def test_repeats_cost_what_the_setting_says():
    def turn(*repeats: bool) -> Turn:
        return Turn("x", (0, 1), tuple(ToolCall("search", "{}", repeat=repeat) for repeat in repeats))

    transcript = Transcript((turn(False), turn(True, True), turn(True)), "answered")
    rewards = TurnRewards(turns=(0.7, 0.2, 0.2), outcome=1.0)
    # The last turn still searches, so it is paid the outcome alone, and the reward of its own is not changed.
    assert charge_repeats(transcript, rewards, 0.1).turns == pytest.approx((0.7, 0.0, 0.2))
    assert charge_repeats(transcript, rewards, 0.0) is rewards


def test_several_queries_in_one_call(index):
    tool = search_tool(index, max_queries=2, k=1)
    assert tool.tool_schema.function.parameters.properties["query"].type == "array"
    text, info = search(tool, ["number3", "number7"])
    assert text == (
        "Query: number3\nDoc 1 (Title: Tower 3) tower of Pim number3 it is in Oslo\n\n"
        "Query: number7\nDoc 1 (Title: Tower 7) tower of Pim number7 it is in Oslo"
    )
    assert [document["id"] for document in info["documents"]] == ["3", "7"]
    assert search(tool, "number3")[1]["ok"], "one query as a string is fine"
    for wrong in (["a", "b", "c"], [], ["a", 3], 7):
        assert search(tool, wrong)[1]["error_kind"] == "bad_arguments"
    assert search(tool, ["a", "  "])[1]["error_kind"] == "no_query"
    short = search_tool(index, max_queries=2, max_chars=120)
    assert len(search(short, ["number3", "number7"])[0]) <= 120


def test_answers_are_cached_for_all_workers(index, tmp_path, monkeypatch):
    cache = str(tmp_path / "answers.db")
    first = search(search_tool(index, cache=cache), "number3")
    second = search_tool(index, cache=cache)
    monkeypatch.setattr(second._index, "search", lambda queries, k: pytest.fail("asked again"))
    again = search(second, "number3")
    assert (again[0], again[1]["documents"]) == (first[0], first[1]["documents"])
    other_k = search_tool(index, cache=cache, k=1)
    assert len(search(other_k, "number3")[1]["documents"]) == 1, "another k is another question"
    with pytest.raises(ConfigError, match=r"cannot be used: file is not a database"):
        (tmp_path / "no.db").write_text("hello " * 1000)
        search_tool(index, cache=str(tmp_path / "no.db"))


def test_a_worker_asks_no_more_at_a_time_than_allowed(index, monkeypatch):
    tool = search_tool(index, concurrency=2)
    now, most = 0, 0
    real = index.search

    async def counting(queries, k):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return real(queries, k)

    monkeypatch.setattr(tool._index, "asearch", counting)

    async def many():
        return await asyncio.gather(*(tool.execute(str(n), {"query": f"number{n}"}) for n in range(20)))

    assert [info["documents"][0]["id"] for _, _, info in asyncio.run(many())] == [str(n) for n in range(20)]
    assert most == 2


def test_what_the_tool_says_survives_json(index):
    json.dumps(search(search_tool(index), "tower")[1])


# ---- against a real service with faults


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    with serving(build_index(tmp_path_factory.mktemp("faulty") / "index"), module=FAULTY) as running:
        yield running


FAULT_KINDS = {
    "500": "server_error",
    "503": "server_error",
    "429": "busy",
    "garbage": "bad_answer",
    "half": "bad_answer",
    "never": "timeout",
}


@pytest.fixture(scope="module")
def survived(faulty):
    """Return the tool's records of 60 searches for each fault, which hits one request in ten; all run at once."""
    settings = {"k": 1, "request_timeout_s": 1.0, "patience_s": 15.0}
    tools = {fault: SearchTool({"index": f"{faulty.url}/{fault}/10/tool", **settings}, None) for fault in FAULT_KINDS}

    async def searches(tool):
        return await asyncio.gather(*(tool.execute(str(n), {"query": f"uid{n}"}) for n in range(60)))

    async def all_searches():
        return await asyncio.gather(*map(searches, tools.values()))

    told = asyncio.run(all_searches())
    return {fault: [info for _, _, info in said] for fault, said in zip(tools, told, strict=True)}


@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_one_request_in_ten_fails_and_all_of_it_is_in_the_metrics(survived, fault):
    kind, infos = FAULT_KINDS[fault], survived[fault]
    assert [info["documents"][0]["id"] for info in infos] == [f"p{n}" for n in range(60)]
    calls = tuple(ToolCall("search", "{}", ok=info["ok"], faults=info["faults"]) for info in infos)
    trouble = tool_trouble(Transcript((Turn("x", (0, 1), calls),), "answered"))
    # The first of ten requests fails: of 61 calls at least seven, one of them the tool's own at its start.
    assert trouble[f"tool/retried/{kind}"] >= 6
    assert trouble["tool/failures"] == 0
    # On a busy machine, even a complete answer may take longer than a try is allowed to.
    assert {fault for info in infos for fault in info["faults"]} <= {kind, "timeout"}


@pytest.fixture(scope="module")
def outages(faulty):
    """Return the tool's outcome for each permanent fault; all run at once, as each takes twice the patience."""
    patience = {"request_timeout_s": 0.3, "patience_s": 1.0}

    def down(fault):
        url = f"{faulty.url}/{fault}/1/tool"
        with pytest.raises(RetrievalError, match=r"search at http://127.0.0.1.* failed"):
            SearchTool({"index": url, **patience}, None)  # found before anything is generated
        tool = SearchTool({"index": faulty.url, **patience}, None)
        tool._index = HTTPRetriever(url, **patience)
        return search(tool, "uid3")

    with ThreadPoolExecutor(len(FAULT_KINDS)) as pool:
        return dict(zip(FAULT_KINDS, pool.map(down, FAULT_KINDS), strict=True))


@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_a_service_that_stays_down_is_an_outage_of_its_kind(outages, fault):
    text, info = outages[fault]
    assert (text, info["error_kind"]) == ("Error: the search engine is down.", FAULT_KINDS[fault])
    assert len(info["faults"]) >= 2


@pytest.mark.clock
@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_a_service_that_stays_down_is_an_outage_within_the_patience(outages, fault):
    assert outages[fault][1]["latency_s"] < 1.0 + 2.0


def test_only_a_service_that_names_its_index_has_its_answers_cached(faulty):
    with pytest.raises(ConfigError, match=r"HTTPRetriever\(.* cannot tell when its answers change; remove cache=x"):
        fingerprint_for("x", HTTPRetriever(f"{faulty.url}/no-health/1/x"))
    assert fingerprint_for("x", HTTPRetriever(faulty.url)).startswith("bm25/plain/")
