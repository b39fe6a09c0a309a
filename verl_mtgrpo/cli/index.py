"""``mtgrpo index``: corpora -> the index of the search tool."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

_DESCRIPTION = """\
Build the BM25 index that the search tool reads (MTGRPO_INDEX), from one corpus or several.

Understood are .json, .jsonl (both also as .gz) or .parquet files of {id, contents} (Search-R1) or
{id, title, text} records, SQuAD's JSON (one passage a paragraph), {title: [sentences]}, and question sets that
carry passages (NQ-open, HotpotQA, MuSiQue). Passages without an id are taken once, however often they occur.

The index that is in OUT stays in use until the new one is complete; stopped at any moment, it stays whole.

examples:
  mtgrpo index wiki.jsonl.gz --out indexes/wiki
  mtgrpo index dev-v2.0.json hotpotqa_corpus.json --out indexes/mixed
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "index",
        help="build the search tool's index from corpora",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpora", nargs="+", type=Path, metavar="CORPUS", help="a file of passages")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the index")
    parser.add_argument(
        "--analyser",
        choices=("english", "plain"),
        default="english",
        help="how text becomes words: with English stemming, or as written (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the index and print its manifest."""
    from verl_mtgrpo.data.corpus import read_corpora
    from verl_mtgrpo.retrieval import BM25Index

    start = time.perf_counter()
    source = ", ".join(path.name for path in args.corpora)
    index = BM25Index.build(read_corpora(args.corpora), args.out, source=source, progress=True, analyser=args.analyser)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(json.dumps(asdict(index.manifest), indent=2, ensure_ascii=False))
    print(f"{args.out}: {len(index)} passages, {size / 1e6:.1f} MB, {seconds:.1f} s")
    return 0
