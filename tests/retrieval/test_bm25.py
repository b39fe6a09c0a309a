from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import naive_bm25
from verl_mtgrpo.errors import ConfigError, DataError, IndexFormatError, RetrievalError
from verl_mtgrpo.retrieval import BM25Index, Passage, Retriever, bm25

CORPUS = [
    Passage("p1", "Harbour of Velm", "The harbour of Velm is older than the town and its lighthouse."),
    Passage("p2", "Orsa Kint", "Orsa Kint built the lighthouse. She was born in Dravik."),
    Passage("p3", "Dravik", "Dravik is a mountain town with a market and a small school."),
    Passage("p4", "Market", "A market is where a town trades; a town without a market trades elsewhere."),
    Passage("p5", "Café Rösti", "A café that serves nothing but rösti."),
]


@pytest.fixture
def index(tmp_path: Path) -> BM25Index:
    return BM25Index.build(CORPUS, tmp_path / "index", source="test", analyser="plain")


@pytest.fixture(scope="module")
def shared_index(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    return BM25Index.build(CORPUS, tmp_path_factory.mktemp("shared") / "index", source="test")


def ids(hits: list[Passage]) -> list[str]:
    return [hit.id for hit in hits]


@pytest.mark.parametrize("query", ["lighthouse", "Orsa Kint born", "market town", "town town school", "velm harbour"])
def test_scores_are_bm25(tmp_path: Path, query: str):
    # Ascii passages of at most 40 words: the engine stores such lengths exactly.
    index = BM25Index.build(CORPUS[:4], tmp_path / "index", source="test", analyser="plain")
    hits = index.search([query], 10)[0]
    expected = naive_bm25(query, CORPUS[:4])
    assert ids(hits) == [id for id, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], rel=1e-4)


def test_hits_carry_the_whole_passage(index: BM25Index):
    (hit,) = index.search(["Orsa"], 3)[0]
    assert replace(hit, score=0.0) == CORPUS[1]
    assert hit.score > 0
    assert isinstance(index, Retriever)


def test_titles_and_texts_are_searched(index: BM25Index):
    assert ids(index.search(["harbour"], 1)[0]) == ["p1"]
    assert ids(index.search(["elsewhere"], 1)[0]) == ["p4"]
    title_only = BM25Index.build(
        [Passage("a", "Zyx", "nothing"), Passage("b", "", "else")], index.path.parent / "t", source="t"
    )
    assert ids(title_only.search(["zyx"], 2)[0]) == ["a"]


def test_case_accents_and_english_endings(shared_index: BM25Index, index: BM25Index):
    assert ids(shared_index.search(["CAFE ROSTI"], 1)[0]) == ["p5"]
    assert ids(shared_index.search(["lighthouses"], 5)[0]) == ids(shared_index.search(["lighthouse"], 5)[0])
    assert index.search(["lighthouses"], 5)[0] == []


def test_queries_keep_their_order_and_k_may_exceed_the_corpus(index: BM25Index):
    hits = index.search(["Orsa", "nosuchword", "town"], 1000)
    assert [len(found) for found in hits] == [1, 0, 3]


def test_equal_scores_keep_the_order_of_the_corpus(tmp_path: Path):
    twins = [Passage(f"id{(7 * i) % 100}", "", "one same text") for i in range(100)]
    index = BM25Index.build(twins, tmp_path / "index", source="twins")
    assert ids(index.search(["same"], 5)[0]) == ids(twins[:5])
    assert ids(index.search(["text"], 99)[0]) == ids(twins[:99])


@pytest.mark.parametrize(
    "query",
    [
        "title:Orsa",
        "Orsa AND (",
        "NOT Orsa",
        "-Orsa",
        '"Orsa',
        "Orsa^99",
        "Orsa~2",
        "text:[orsa TO z]",
        "IN [Orsa]",
        "/Orsa/",
        "\x00Orsa\x1b[31m",
        "\ud800 Orsa 😀",
        "<tool_call>{Orsa}</tool_call>\\",
    ],
)
def test_a_query_language_is_only_words(index: BM25Index, query: str):
    assert ids(index.search([query], 1)[0]) == ["p2"]


@pytest.mark.parametrize("query", ["", "   ", "*", "()", "😀", "\x00", "\ud800", "???"])
def test_queries_without_words_find_nothing(index: BM25Index, query: str):
    assert index.search([query], 3) == [[]]


@pytest.mark.parametrize("query", ["a" * 1_000_000, "town " * 200_000, "( [ AND " * 125_000, "é\u0301" * 500_000])
def test_a_megabyte_is_a_query(index: BM25Index, query: str):
    assert len(index.search([query], 3)[0]) <= 3


@settings(max_examples=150)
@given(query=st.text(alphabet=st.characters(), max_size=60))
def test_any_text_is_a_query(shared_index: BM25Index, query: str):
    (hits,) = shared_index.search([query], 3)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True) and all(score > 0 for score in scores)


@pytest.mark.parametrize("k", [0, -1])
def test_k_has_to_be_positive(index: BM25Index, k: int):
    with pytest.raises(ConfigError, match=r"k is .*at least 1"):
        index.search(["town"], k)


def test_queries_have_to_be_a_list_of_strings(index: BM25Index):
    with pytest.raises(RetrievalError, match=r"one string .*expected a list"):
        index.search("town", 3)
    with pytest.raises(RetrievalError, match=r"query is a NoneType .*expected a string"):
        index.search([None], 3)  # type: ignore[list-item]


def test_opening_and_searching_write_nothing(index: BM25Index):
    def snapshot() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in [index.path, *index.path.rglob("*")]}

    before = snapshot()
    assert BM25Index.open(index.path).search(["town"], 3)[0]
    assert snapshot() == before


def test_manifest_says_what_the_index_is(index: BM25Index):
    manifest = json.loads((index.path / "manifest.json").read_text())
    assert manifest["count"] == len(index) == 5
    assert (manifest["source"], manifest["analyser"], manifest["version"]) == ("test", "plain", 2)


def test_checksum_depends_on_content_only(tmp_path: Path):
    def checksum(name: str, passages: list[Passage]) -> str:
        return BM25Index.build(passages, tmp_path / name, source=name).manifest.checksum

    original = checksum("a", CORPUS)
    assert checksum("b", CORPUS) == original
    # The same characters, with the border between title and text elsewhere.
    assert checksum("c", [*CORPUS[:4], Passage("p5", "Café", " Rösti" + CORPUS[4].text)]) != original


# ---- several processes and threads


def _search_in_child(index: BM25Index, query: str) -> list[Passage]:
    return [hit for _ in range(50) for hit in index.search([query], 2)[0]][-2:]


@pytest.mark.process
def test_two_processes_share_an_index(index: BM25Index):
    queries = ["market town", "lighthouse"]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(_search_in_child, [(index, query) for query in queries])
    assert found == index.search(queries, 2)


def test_threads_share_an_index(index: BM25Index):
    queries = [word for passage in CORPUS for word in passage.text.split()] * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: index.search([query], 3)[0], queries))
    assert found == index.search(queries, 3)


def test_a_pickled_index_refuses_other_content(index: BM25Index):
    copy = pickle.loads(pickle.dumps(index))
    BM25Index.build(CORPUS[:2], index.path, source="other")
    with pytest.raises(IndexFormatError, match="replaced by one with other passages"):
        copy.search(["town"], 1)


def test_an_open_index_survives_its_replacement(index: BM25Index):
    before = index.search(["market town"], 3)
    BM25Index.build(CORPUS[:1], index.path, source="other")
    assert index.search(["market town"], 3) == before


# ---- what is no index


def test_no_index(tmp_path: Path):
    with pytest.raises(IndexFormatError, match=r"no index at .*mtgrpo index CORPUS --out"):
        BM25Index.open(tmp_path / "missing")
    with pytest.raises(IndexFormatError, match=r"not an index of verl-mtgrpo: it has no manifest.json"):
        BM25Index.open(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "faiss"}, "format='faiss', expected 'verl-mtgrpo/bm25'"),
        ({"version": 3}, "version 3, this verl-mtgrpo reads version 2; upgrade verl-mtgrpo, or rebuild"),
        ({"version": 0}, "version 0, .*; rebuild: build it with"),
        ({"analyser": "klingon"}, "analyser 'klingon'.*english, plain"),
        ({"count": 6}, "damaged: it holds 5 passages, its manifest says 6"),
        ({"data": "data-000000000000"}, "damaged: its data folder data-000000000000 is missing"),
        ({"extra": 1}, "damaged .*extra"),
    ],
)
def test_foreign_newer_and_damaged_indexes(index: BM25Index, change: dict[str, object], message: str):
    path = index.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(IndexFormatError, match=message):
        BM25Index.open(index.path)


def test_damaged_files(index: BM25Index):
    for file in (index.path / index.manifest.data).glob("*.term"):
        file.unlink()
    with pytest.raises(IndexFormatError, match=r"written by tantivy .* cannot be opened .*build it again"):
        BM25Index.open(index.path)
    (index.path / "manifest.json").write_text("{")
    with pytest.raises(IndexFormatError, match=r"manifest.json cannot be read"):
        BM25Index.open(index.path)


# ---- building


def test_an_empty_corpus_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(DataError, match=r"corpus is empty: nothing.jsonl has no passages"):
        BM25Index.build([], tmp_path / "index", source="nothing.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_duplicate_ids_are_named_and_the_old_index_stays(index: BM25Index):
    before = sorted(index.path.iterdir())
    twice = [*CORPUS, Passage("p2", "", "again")]
    with pytest.raises(DataError, match=r"two passages have the id 'p2' \(passage 2 and passage 6 of again\)"):
        BM25Index.build(twice, index.path, source="again")
    assert sorted(index.path.iterdir()) == before
    assert len(BM25Index.open(index.path)) == 5


def test_an_error_in_the_corpus_leaves_the_old_index(index: BM25Index):
    def broken():
        yield CORPUS[0]
        raise DataError("line 2 is not valid JSON")

    before = sorted(index.path.iterdir())
    with pytest.raises(DataError, match="line 2"):
        BM25Index.build(broken(), index.path, source="broken")
    assert sorted(index.path.iterdir()) == before
    assert ids(BM25Index.open(index.path).search(["Orsa"], 1)[0]) == ["p2"]


def _start_endless_build(out: Path) -> subprocess.Popen[str]:
    """Start a process that stays in the middle of a build: its corpus yields 20,000 passages and does not end."""
    script = textwrap.dedent(
        f"""
        import time
        from verl_mtgrpo.retrieval import BM25Index, Passage

        def passages():
            for number in range(20_000):
                yield Passage(str(number), "new", f"town {{number}}")
            print("in the middle", flush=True)
            time.sleep(60)

        BM25Index.build(passages(), {str(out)!r}, source="killed")
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    return process


@pytest.mark.process
def test_a_build_killed_in_the_middle_leaves_the_old_index_whole(index: BM25Index):
    process = _start_endless_build(index.path)
    try:
        with pytest.raises(RetrievalError, match="another process is building an index"):
            BM25Index.build(CORPUS, index.path, source="second")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(list(index.path.glob("data-*"))) == 2
    assert BM25Index.open(index.path).search(["market town"], 3) == index.search(["market town"], 3)

    BM25Index.build(CORPUS[:3], index.path, source="after")
    assert len(list(index.path.glob("data-*"))) == 1
    assert len(BM25Index.open(index.path)) == 3


@pytest.mark.process
def test_a_first_build_killed_in_the_middle_can_be_repeated(tmp_path: Path):
    process = _start_endless_build(tmp_path / "index")
    process.kill()
    process.communicate()
    with pytest.raises(IndexFormatError, match=r"no manifest.json"):
        BM25Index.open(tmp_path / "index")
    assert len(BM25Index.build(CORPUS, tmp_path / "index", source="again")) == 5


def test_what_a_build_killed_in_its_last_step_leaves_is_cleared_away(index: BM25Index):
    left = index.path / ".manifest.json.12345.part"
    left.write_text("{")
    assert BM25Index.open(index.path).search(["market town"], 3) == index.search(["market town"], 3)
    BM25Index.build(CORPUS[:3], index.path, source="after")
    assert not left.exists() and len(BM25Index.open(index.path)) == 3


def test_a_build_never_writes_into_a_foreign_folder(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(IndexFormatError, match=r"already holds other files \(thesis.tex\)"):
        BM25Index.build(CORPUS, tmp_path, source="x")
    with pytest.raises(IndexFormatError, match=r"thesis.tex is a file"):
        BM25Index.build(CORPUS, tmp_path / "thesis.tex", source="x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text('{"format": "someone else"}')
    with pytest.raises(IndexFormatError, match="not written by verl-mtgrpo"):
        BM25Index.build(CORPUS, other, source="x")
    assert [path.name for path in other.iterdir()] == ["manifest.json"]


def test_a_build_replaces_an_index_of_another_version(index: BM25Index):
    path = index.path / "manifest.json"
    path.write_text(json.dumps({"format": "verl-mtgrpo/bm25", "version": 99, "data": index.manifest.data}))
    assert len(BM25Index.build(CORPUS[:4], index.path, source="x")) == 4
    assert len(list(index.path.glob("data-*"))) == 1


def test_unknown_analyser(tmp_path: Path):
    with pytest.raises(ConfigError, match="analyser is 'german', expected one of english, plain"):
        BM25Index.build(CORPUS, tmp_path / "x", source="x", analyser="german")


def test_odd_passages_are_kept(tmp_path: Path):
    odd = [Passage("", "", ""), Passage("🦊", "a\x00b", "half \ud83d pair"), Passage("big", "", "word " * 200_000)]
    index = BM25Index.build(odd, tmp_path / "index", source="odd")
    assert index.search(["half"], 1)[0][0].text == "half ? pair"
    assert len(index.search(["word"], 1)[0][0].text) == 1_000_000


@pytest.mark.process
def test_importing_the_package_loads_no_search_engine():
    code = "import sys, verl_mtgrpo.retrieval; print([m for m in ('tantivy', 'numpy', 'verl') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_opening_outlasts_files_that_come_back_while_the_folder_is_deleted(index: BM25Index):
    """tantivy's watcher thread may write its lock file late; a busy thread of ours makes that happen every time."""
    stop = threading.Event()

    def write_back(folder: str) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                Path(folder, ".tantivy-meta.lock").touch()

    with bm25._short_lived_folder() as folder:
        thread = threading.Thread(target=write_back, args=(folder,))
        thread.start()
        time.sleep(0.05)
        threading.Timer(0.2, stop.set).start()
    thread.join()
    assert not Path(folder).exists()
