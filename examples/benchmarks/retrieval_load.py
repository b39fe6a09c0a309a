"""Measure many concurrent searches through the search tool: an index in every worker, or a search service.

    python examples/benchmarks/retrieval_load.py --data DIR
    python examples/benchmarks/retrieval_load.py --data DIR --passages 1000000 --sides index,service,ray

DIR is what ``retrieval.py`` wants; corpus and index are the same as there and are kept under ``--work``. Each side is
measured with ``--processes`` processes that call the real tool (:class:`SearchTool`) as agent loop workers do, each
with ``--concurrent`` searches in flight on one event loop and, after that, with one at a time:

    index     every process opens the index itself (memory-mapped, so its pages are shared)
    service   ``mtgrpo serve`` with its defaults, in one separate process
    ray       ``mtgrpo serve --ray`` with ``--replicas`` replicas on a private Ray

No query is asked twice, so no cache can answer, and all sides are asked the same. With more searches in flight than
cores, most of a search's time is spent in line: its median is about searches in flight / searches a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing as mp
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from retrieval import FREQUENCIES, K, Ours, in_process, machine, read_questions, table, write_corpus

SIDES = ("index", "service", "ray")
BEAT_S = 0.002
LIMIT_S = 600  # for the slowest process to become ready


@dataclass
class Load:
    """The measurements of one process: seconds and found ids of each search, begin and end, late beats."""

    seconds: list[float]
    found: list[tuple[str, ...]]
    failed: int
    begun: float
    ended: float
    late_s: list[float]


# ---- one worker


def work(number: int, spec: str, sizes: argparse.Namespace, queries: Sequence[str], step: Any, results: Any) -> None:
    """Open the tool and put both loads on it; ``step`` synchronises all workers and the parent."""
    warm_up, one_by_one = sizes.concurrent, sizes.concurrent + sizes.light
    try:
        from verl_mtgrpo.integration.rollout.search_tool import SearchTool

        stand_still(step)
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # verl prints the tool's schema
            tool = SearchTool({"type": "native", "index": spec, "k": K, "concurrency": sizes.concurrent}, None)
        opened_s = time.perf_counter() - begun
        asyncio.run(put_load(tool, queries[:warm_up], sizes.concurrent))
        stand_still(step)
        many = asyncio.run(put_load(tool, queries[one_by_one:], sizes.concurrent))
        stand_still(step)
        results.put((number, opened_s, many, asyncio.run(put_load(tool, queries[warm_up:one_by_one], 1))))
    except BaseException:
        traceback.print_exc()
        step.abort()
        raise


def stand_still(step: Any) -> None:
    """Wait for all workers, and until the parent has read memory and processor time."""
    step.wait(LIMIT_S)
    step.wait(LIMIT_S)


async def put_load(tool: Any, queries: Sequence[str], concurrent: int) -> Load:
    """Ask all queries, ``concurrent`` at a time, like that many rollouts that only search."""
    load = Load([0.0] * len(queries), [()] * len(queries), 0, time.perf_counter(), 0.0, [])
    waiting = iter(range(len(queries)))

    async def rollout() -> None:
        for at in waiting:
            start = time.perf_counter()
            _, _, info = await tool.execute("", {"query": queries[at]})
            load.seconds[at] = time.perf_counter() - start
            load.found[at] = tuple(document["id"] for document in info["documents"])
            load.failed += not info["ok"]

    beat = asyncio.create_task(heartbeat(load.late_s))
    await asyncio.gather(*(rollout() for _ in range(concurrent)))
    load.ended = time.perf_counter()
    beat.cancel()
    return load


async def heartbeat(late_s: list[float]) -> None:
    """Record by how much each short sleep was too long, because the event loop was doing something else."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(BEAT_S)
        late_s.append(time.perf_counter() - start - BEAT_S)


# ---- one side


def measure(side: str, index: Path, shares: Sequence[Sequence[str]], sizes: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers of one side, and the passages that it found."""
    context = mp.get_context("spawn")
    with service(side, index, sizes) as (spec, ready_s, server):
        step, results = context.Barrier(sizes.processes + 1), context.Queue()
        each = ((n, spec, sizes, share, step, results) for n, share in enumerate(shares))
        workers = [context.Process(target=work, args=arguments, daemon=True) for arguments in each]
        for worker in workers:
            worker.start()
        (imported, _), (_, warm_s), (searched, done_s), serving = watch(step, workers, server)
        answers = sorted((results.get(timeout=LIMIT_S) for _ in workers), key=lambda answer: answer[0])
        for worker in workers:
            worker.join()
    _, opened_s, many, light = zip(*answers, strict=True)
    searches = sum(len(load.seconds) for load in many)
    numbers = {
        "service ready, s": ready_s,
        "tool opened, s (slowest)": max(opened_s),
        **spread(many, f"{sizes.processes * sizes.concurrent} at once"),
        **spread(light, f"{sizes.processes} at once"),
        "processor ms a search": 1e3 * (done_s - warm_s) / searches,
        "PSS MB that searching adds": searched - imported + serving,
        "… of it the service": serving,
        "PSS MB of all processes": searched + serving,
    }
    return {"numbers": numbers, "found": [ids for load in (*many, *light) for ids in load.found]}


def watch(step: Any, workers: Sequence[Any], server: psutil.Process | None) -> Iterator[Any]:
    """Yield memory of the workers and processor time of all when workers pause, and finally the service's memory.

    They do when all have imported the same, when the index has been used, and after the load.
    """
    own = [psutil.Process(worker.pid) for worker in workers]
    for _ in range(3):
        step.wait(LIMIT_S)
        serving = [] if server is None else [server, *server.children(recursive=True)]
        yield sum(map(pss_mb, own)), sum(map(processor_s, (*own, *serving)))
        memory = sum(map(pss_mb, serving))
        step.wait(LIMIT_S)
    yield memory


def spread(loads: Sequence[Load], name: str) -> dict[str, float]:
    """Return rate, latency and lateness of the event loop over all processes."""
    seconds = np.concatenate([load.seconds for load in loads])
    late = np.concatenate([load.late_s for load in loads])
    rate = len(seconds) / (max(load.ended for load in loads) - min(load.begun for load in loads))
    p50, p99, last = 1e3 * np.percentile(seconds, [50, 99, 100])
    return {
        f"{name}: searches a second": rate,
        f"{name}: p50, ms": p50,
        f"{name}: p99, ms": p99,
        f"{name}: longest, ms": last,
        f"{name}: event loop late p99, ms": 1e3 * np.percentile(late, 99),
        f"{name}: failed": sum(load.failed for load in loads),
    }


@contextlib.contextmanager
def service(side: str, index: Path, sizes: argparse.Namespace) -> Iterator[tuple[str, float, psutil.Process | None]]:
    """Yield the tool's ``index``, the seconds until it is ready, and the process of the service if any."""
    if side == "index":
        yield str(index), 0.0, None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    on_ray = ("--ray", "--replicas", str(sizes.replicas)) if side == "ray" else ()
    command = [sys.executable, "-m", "verl_mtgrpo.cli.main", "serve", str(index), "--port", str(port), *on_ray]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line.startswith("ready at "):
                raise SystemExit(f"{' '.join(command)} said {line!r}, expected 'ready at ...'")
            yield line.removeprefix("ready at ").split(": ")[0], time.perf_counter() - begun, psutil.Process(server.pid)
        finally:
            server.terminate()
            server.communicate()  # Ray prints until the end


def processor_s(process: psutil.Process) -> float:
    """Return the processor time that a process and its children have used so far."""
    with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends idle ones
        return sum(process.cpu_times()[:2])
    return 0.0


def pss_mb(process: psutil.Process) -> float:
    """Return the memory of a process; a page shared by n processes counts as 1/n."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.memory_full_info().pss / 1e6
    return 0.0


# ---- all sides


def main() -> None:
    """Measure each side and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--frequencies", choices=tuple(FREQUENCIES), default="real", help="see retrieval.py")
    parser.add_argument("--sides", default="index,service", help=f"some of {','.join(SIDES)} (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="agent loop workers (default: %(default)s)")
    parser.add_argument("--concurrent", type=int, default=64, help="searches in flight in each (default: %(default)s)")
    parser.add_argument("--searches", type=int, default=4000, help="of all processes (default: %(default)s)")
    parser.add_argument("--light", type=int, default=100, help="in each process, one at a time (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=2, help="of the side ray (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/retrieval"), help="where corpora and indexes are kept")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    wanted = args.sides.split(",")
    if not set(wanted) <= set(SIDES):
        parser.error(f"--sides is {args.sides}, expected some of {','.join(SIDES)}")
    index = build(args)
    texts = list(dict.fromkeys(question.text for question in read_questions(args.data)))
    each = args.searches // args.processes + args.concurrent + args.light
    if each * args.processes > len(texts):
        raise SystemExit(f"{each * args.processes} searches need as many questions, but {args.data} has {len(texts)}")
    order = np.random.default_rng(args.seed).permutation(len(texts))[: each * args.processes]
    shares = [[texts[at] for at in order[n :: args.processes]] for n in range(args.processes)]
    print(
        f"{machine()}, seed {args.seed}; {args.passages} passages ({args.frequencies} frequencies), k = {K}; "
        f"{args.processes} processes, {args.concurrent} searches at once in each, {args.searches} in all"
    )
    sides: dict[str, dict[str, Any]] = {}
    for side in wanted:
        busy = os.getloadavg()[0]
        measured = measure(side, index, shares, args)
        first = next(iter(sides.values()), measured)["found"]
        other = sum(a != b for a, b in zip(first, measured["found"], strict=True))
        measured["numbers"] |= {"other passages than the first side": other, "load of the machine before": busy}
        sides[side] = measured
    numbers = {side: measured["numbers"] for side, measured in sides.items()}
    print("\n".join(table(numbers)))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **numbers}, indent=2))


def build(args: argparse.Namespace) -> Path:
    """Return the corpus and index of ``retrieval.py``; make them if necessary."""
    args.work.mkdir(parents=True, exist_ok=True)
    name = f"{args.passages}-seed{args.seed}" + ("" if args.frequencies == "real" else f"-{args.frequencies}")
    corpus, index = args.work / f"corpus-{name}.jsonl", args.work / f"mtgrpo-{name}"
    write_corpus(args.data, corpus, args.passages, args.seed, args.frequencies)
    if not (index / "manifest.json").exists():
        in_process(Ours().build, corpus, index)
    return index.absolute()


if __name__ == "__main__":
    main()
