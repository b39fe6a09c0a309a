"""Compare the search tool's index with bm25s and SQLite FTS5: build, disk, latency, throughput, memory, recall@3.

    python examples/benchmarks/retrieval.py --data DIR --passages 100000
    python examples/benchmarks/retrieval.py --data DIR --passages 1000000 --engines mtgrpo,fts5

DIR holds the question sets and corpora named in SOURCES below (public files; none ships with this package). Their
passages are padded with made-up text to ``--passages``: words drawn by a Zipf law over the real vocabulary, the most
frequent first, and made-up words behind it. The same seed gives the same corpus. Everything a run writes lies under
``--work`` and is reused by the next run.

Each engine gives back the text of its k = 3 passages. Timings of several processes come from processes that all run at
the same time, and memory is the sum of their PSS, which counts a shared page once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing as mp
import platform
import re
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_mtgrpo.data.corpus import article_title, read_corpora, read_corpus
from verl_mtgrpo.retrieval import BM25Index, Passage
from verl_mtgrpo.retrieval.types import content_id

SOURCES = {
    "squad": "squad2_cs224n_dev.json",
    "nq": "nq-open-oracle.jsonl.gz",
    "hotpot": "hippo_hotpotqa_train.json",
    "musique": "hippo_musique_train.json",
}
CORPORA = (*SOURCES.values(), "hippo_hotpotqa_train_corpus.json", "hippo_musique_train_corpus.json", "xquad.en.json")
K = 3
VOCABULARY = 500_000
# Share of the passages whose words are as frequent as in real passages.
FREQUENCIES = {"real": 1.0, "mixed": 0.13, "shuffled": 0.0}
WORDS = 100  # average length of a made-up passage, like those of Search-R1


# ---- questions and corpus


@dataclass(frozen=True)
class Question:
    """``gold``: ids of the passages that support the answer."""

    dataset: str
    text: str
    answers: tuple[str, ...]
    gold: frozenset[str]


def read_questions(data: Path) -> list[Question]:
    """Return the questions that have an answer, with the ids that ``read_corpora`` gives their gold passages."""
    questions: list[Question] = []
    for article in json.loads((data / SOURCES["squad"]).read_text())["data"]:
        for paragraph in article["paragraphs"]:
            gold = frozenset({content_id(article_title(article), paragraph["context"])})
            for qa in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in qa["answers"])
                if answers:
                    questions.append(Question("squad", qa["question"], answers, gold))
    with gzip.open(data / SOURCES["nq"], "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            gold = frozenset(content_id(c["title"], c["text"]) for c in row["ctxs"] if c["isgold"])
            questions.append(Question("nq", row["question"], tuple(row["answers"]), gold))
    ids = {(passage.title, _words(passage.text)): passage.id for passage in read_corpus(data / SOURCES["hotpot"])}
    for row in json.loads((data / SOURCES["hotpot"]).read_text()):
        titles = {title for title, _ in row["supporting_facts"]}
        texts = {(title, _words(" ".join(sentences))) for title, sentences in row["context"] if title in titles}
        questions.append(Question("hotpot", row["question"], (row["answer"],), frozenset(ids[text] for text in texts)))
    for row in json.loads((data / SOURCES["musique"]).read_text()):
        gold = frozenset(content_id(p["title"], p["paragraph_text"]) for p in row["paragraphs"] if p["is_supporting"])
        answers = (row["answer"], *row["answer_aliases"])
        questions.append(Question("musique", row["question"], answers, gold))
    return questions


def _words(text: str) -> str:
    return " ".join(text.split())


def write_corpus(data: Path, out: Path, passages: int, seed: int, frequencies: str) -> None:
    """Write the real passages, then made-up ones, as {id, title, text} lines; keep an existing file."""
    if out.exists():
        return
    real = list(read_corpora([data / name for name in CORPORA]))[:passages]
    counts = Counter(word for p in real for word in re.findall(r"\w+", f"{p.title} {p.text}".lower()))
    words = [word for word, _ in counts.most_common()]
    words += [f"zq{number}" for number in range(VOCABULARY - len(words))]
    vocabulary = np.array(words, dtype=object)
    shuffled = np.random.default_rng(seed + 1).permutation(vocabulary)
    share = np.cumsum(1 / (np.arange(len(words)) + 2.7))
    share = share / share[-1]
    until = int(passages * FREQUENCIES[frequencies])
    draft, rng, done = out.with_suffix(".part"), np.random.default_rng(seed), len(real)
    with draft.open("w", encoding="utf-8") as file:
        for p in real:
            file.write(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n")
        while done < passages:
            for text in _made_up(rng, min(10_000, passages - done), vocabulary if done < until else shuffled, share):
                file.write(json.dumps({"id": f"made-{done}", "title": "", "text": text}) + "\n")
                done += 1
    draft.rename(out)


def _made_up(rng: np.random.Generator, count: int, vocabulary: Any, share: Any) -> Iterator[str]:
    lengths = rng.integers(WORDS // 2, WORDS * 3 // 2, count)
    words = vocabulary[np.searchsorted(share, rng.random(int(lengths.sum())))]
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        yield " ".join(words[end - length : end])


# ---- engines: build, open, search


class Ours:
    """This package's index."""

    def build(self, corpus: Path, folder: Path) -> None:
        BM25Index.build(read_corpus(corpus), folder, source=corpus.name)

    def open(self, folder: Path) -> None:
        self.index = BM25Index.open(folder)

    def search(self, query: str) -> list[Passage]:
        return self.index.search([query], K)[0]


class Plain(Ours):
    """The same engine, requiring all words of a query."""

    def open(self, folder: Path) -> None:
        super().open(folder)
        self.index._engine()._words._can_split = False


class FTS5:
    """SQLite's full-text search, its own BM25, Porter stemming."""

    def build(self, corpus: Path, folder: Path) -> None:
        folder.mkdir()
        database = sqlite3.connect(folder / "fts5.db")
        database.execute("CREATE VIRTUAL TABLE p USING fts5(id UNINDEXED, title, text, tokenize='porter unicode61')")
        rows = ((p.id, p.title, p.text) for p in read_corpus(corpus))
        database.executemany("INSERT INTO p VALUES (?, ?, ?)", rows)
        database.execute("INSERT INTO p(p) VALUES ('optimize')")
        database.commit()
        database.close()

    def open(self, folder: Path) -> None:
        self.database = sqlite3.connect(f"file:{folder / 'fts5.db'}?mode=ro", uri=True)

    def search(self, query: str) -> list[Passage]:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        if not words:
            return []
        sql = f"SELECT id, title, text, -rank FROM p WHERE p MATCH ? ORDER BY rank LIMIT {K}"
        return [Passage(*row) for row in self.database.execute(sql, (words,))]


class BM25S:
    """bm25s with numba and memory mapping, English stop words and Snowball stemming."""

    def build(self, corpus: Path, folder: Path) -> None:
        import bm25s
        import Stemmer

        rows = [{"id": p.id, "title": p.title, "text": p.text} for p in read_corpus(corpus)]
        texts = [f"{row['title']}\n{row['text']}" for row in rows]
        tokens = bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)
        index = bm25s.BM25(backend="numba")
        index.index(tokens, show_progress=False)
        index.save(str(folder), corpus=rows, show_progress=False)

    def open(self, folder: Path) -> None:
        import bm25s
        import Stemmer

        self.tokenize, self.stemmer = bm25s.tokenize, Stemmer.Stemmer("english")
        self.index = bm25s.BM25.load(str(folder), mmap=True, load_corpus=True)
        self.index.backend = "numba"
        self.index.activate_numba_scorer()

    def search(self, query: str) -> list[Passage]:
        tokens = self.tokenize([query], stopwords="en", stemmer=self.stemmer, show_progress=False)
        hits, scores = self.index.retrieve(tokens, k=K, show_progress=False, n_threads=0)
        return [Passage(h["id"], h["title"], h["text"], float(s)) for h, s in zip(hits[0], scores[0], strict=True)]


ENGINES = {"mtgrpo": Ours, "plain": Plain, "bm25s": BM25S, "fts5": FTS5}


# ---- measuring, each in a separate process


def build(engine: str, corpus: Path, folder: Path) -> dict[str, float]:
    """Measure seconds and peak MB of the build."""
    import resource

    started = time.perf_counter()
    ENGINES[engine]().build(corpus, folder)
    seconds = time.perf_counter() - started
    return {"build_s": seconds, "build_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def latency(engine: str, folder: Path, queries: list[str]) -> dict[str, float]:
    """Measure the seconds to open and to answer first, and the spread over the queries, one at a time.

    Beside the time on the clock stands the processor time, which a busy machine changes less.
    """
    started = time.perf_counter()
    searcher = ENGINES[engine]()
    searcher.open(folder)
    opened = time.perf_counter()
    searcher.search(queries[0])
    first = time.perf_counter()
    for query in queries[: len(queries) // 4]:
        searcher.search(query)
    times = []
    for query in queries:
        start, cpu = time.perf_counter(), time.process_time()
        searcher.search(query)
        times.append((1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu)))
    (p50, p50_cpu), (p99, p99_cpu) = np.percentile(times, [50, 99], axis=0).tolist()
    return {
        "open_s": opened - started,
        "first_s": first - opened,
        "p50_ms": p50,
        "p99_ms": p99,
        "p50_cpu_ms": p50_cpu,
        "p99_cpu_ms": p99_cpu,
    }


def recall(engine: str, folder: Path, questions: list[Question]) -> dict[str, float]:
    """Return, for each question set, the share of questions whose best ``K`` passages contain ...

    any: one gold passage or more; all: every gold passage; answer: the text of an answer.
    """
    searcher = ENGINES[engine]()
    searcher.open(folder)
    found: dict[str, list[bool]] = {}
    for question in questions:
        hits = searcher.search(question.text)
        ids, text = {hit.id for hit in hits}, "\n".join(f"{hit.title}\n{hit.text}" for hit in hits).lower()
        for name, value in (
            ("any", bool(ids & question.gold)),
            ("all", question.gold <= ids),
            ("answer", any(answer.lower() in text for answer in question.answers)),
        ):
            found.setdefault(f"{question.dataset} {name}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def throughput(engine: str, folder: Path, queries: list[str], processes: int, seconds: float) -> dict[str, float]:
    """Return the queries per second of all processes together, and their memory with the index open."""
    context = mp.get_context("spawn")
    start, stop, counts = context.Barrier(processes), context.Barrier(processes + 1), context.Queue()
    arguments = (engine, folder, queries, seconds, start, stop, counts)
    workers = [context.Process(target=_work, args=(number, *arguments)) for number in range(processes)]
    for worker in workers:
        worker.start()
    rates = [counts.get(timeout=600) for _ in workers]
    memory = sum(_pss_mb(worker.pid) for worker in workers)
    stop.wait()
    for worker in workers:
        worker.join()
    return {f"qps_{processes}": sum(rates), f"pss_{processes}_mb": memory}


def _work(number: int, engine: str, folder: Path, queries: list[str], seconds: float, *sync: Any) -> None:
    start, stop, counts = sync
    searcher = ENGINES[engine]()
    searcher.open(folder)
    searcher.search(queries[0])
    start.wait()
    done, at, begun = 0, number * len(queries) // 4, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        searcher.search(queries[(at + done) % len(queries)])
        done += 1
    counts.put(done / elapsed)
    stop.wait()


def _pss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1]) / 1024  # type: ignore[index]


def in_process(function: Any, *arguments: Any) -> Any:
    """Call it in a fresh process, so that engines do not share imports, caches or memory."""
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(engine: str, corpus: Path, folder: Path, questions: list[Question], args: Any) -> dict[str, float]:
    """Return all numbers of one engine; those of the build are stored next to the index."""
    noted = folder.with_suffix(".build.json")
    if not noted.exists():
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        noted.write_text(json.dumps(in_process(build, engine, corpus, folder)))
    numbers = json.loads(noted.read_text())
    numbers["disk_mb"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
    order = np.random.default_rng(args.seed).permutation(len(questions))
    queries = [questions[at].text for at in order[: args.queries]]
    if engine == "fts5":
        queries = queries[:100]  # they take up to a second each
    numbers |= in_process(latency, engine, folder, queries)
    for processes in (1, 2, 4):
        numbers |= throughput(engine, folder, queries, processes, args.seconds)
    if engine != "fts5" or args.passages <= 20_000:  # minutes otherwise
        numbers |= in_process(recall, engine, folder, questions)
    return numbers


def machine() -> str:
    """Describe the machine and the packages."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return f"commit {commit}, {mp.cpu_count()} x {cpu[1] if cpu else platform.processor()}, {platform.python_version()}"


def table(results: dict[str, dict[str, float]]) -> Iterable[str]:
    """Yield the lines of a Markdown table, engines as columns."""
    names = dict.fromkeys(name for numbers in results.values() for name in numbers)
    yield f"| | {' | '.join(results)} |"
    yield "|---" * (len(results) + 1) + "|"
    for name in names:
        cells = (f"{numbers[name]:.3g}" if name in numbers else "-" for numbers in results.values())
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure each engine and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--engines", default="mtgrpo,bm25s,fts5")
    parser.add_argument(
        "--frequencies",
        choices=tuple(FREQUENCIES),
        default="real",
        help="of words in made-up text: as in the real text, where most passages hold a word of nearly every query; "
        "shuffled: Zipf's law over the words in random order, which is easier; mixed: 13 %% of the passages as in the "
        "real text, the others shuffled (default: %(default)s)",
    )
    parser.add_argument("--queries", type=int, default=1000, help="of the latency measurement (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of each throughput measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/retrieval"), help="where corpora and indexes are kept")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    name = f"{args.passages}-seed{args.seed}" + ("" if args.frequencies == "real" else f"-{args.frequencies}")
    corpus = args.work / f"corpus-{name}.jsonl"
    write_corpus(args.data, corpus, args.passages, args.seed, args.frequencies)
    questions = read_questions(args.data)
    print(
        f"{machine()}, seed {args.seed}; {args.passages} passages ({args.frequencies} frequencies), "
        f"{corpus.stat().st_size / 1e6:.0f} MB of JSON lines"
    )
    print(f"{dict(Counter(q.dataset for q in questions))} questions, k = {K}")
    results: dict[str, dict[str, float]] = {}
    for engine in args.engines.split(","):
        results[engine] = measure(engine, corpus, args.work / f"{engine}-{name}", questions, args)
        print("\n".join(table(results)), flush=True)
    (args.work / f"results-{name}.json").write_text(json.dumps({"machine": machine(), **results}, indent=2))


if __name__ == "__main__":
    main()
