"""Build the index of the search tool from corpora: ``mtgrpo index``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError

if TYPE_CHECKING:
    from verl_mtgrpo.retrieval import BM25Index, DenseIndex, Passage

_DESCRIPTION = """\
Build the index that the search tool reads (MTGRPO_INDEX), from one or several corpora, or check one.

A corpus is a .json, .jsonl, .jsonlines, .csv, .tsv (all also as .gz) or .parquet file of {id, contents} (Search-R1) or
{id, title, text} records, SQuAD's JSON (one passage per paragraph), {title: [sentences]}, or a question set with
passages (NQ-open, HotpotQA, MuSiQue, QED). hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT streams a dataset of the
Hugging Face hub, or a local folder of data files; a plain folder may be one that Dataset.save_to_disk wrote.
Passages without an id are added once, however often they occur. Text that is not UTF-8 is an error that names the line.

A corpus may also be a .txt, .md, .html or .pdf document, or a folder of them (extra `documents`). They are split into
passages of at most --chunk-chars characters; documents that cannot be read are left out and named.

The index is BM25; with --dense or --vectors it is an index of vectors (extra `dense`).

An existing index in OUT stays complete and in use until the new one is complete, even if a
build is killed.

examples:
  mtgrpo index wiki.jsonl.gz --out indexes/wiki
  mtgrpo index dev-v2.0.json hotpotqa_corpus.json --out indexes/mixed
  mtgrpo index wiki.jsonl.gz --out indexes/e5 --dense intfloat/e5-base-v2 \\
      --query-prefix 'query: ' --passage-prefix 'passage: '
  mtgrpo index wiki.jsonl.gz --out indexes/e5 --dense intfloat/e5-base-v2 --vectors wiki.npy ...
  mtgrpo index handbook/ manual.pdf --out indexes/handbook
  mtgrpo index --check indexes/wiki
  mtgrpo query indexes/wiki "who wrote The Hobbit"
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "index",
        help="build the search tool's index from corpora, or check one",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help="a file, dataset or folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the index")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="DIR",
        help="build nothing: read the whole index in DIR, compare it with its manifest, search it; exit code 1 "
        "if it is damaged",
    )
    parser.add_argument(
        "--analyser",
        choices=("english", "plain"),
        default="english",
        help="BM25: how text becomes words: with English stemming, or as written (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk-chars",
        type=int,
        metavar="N",
        help="documents: characters of the longest passage (default: 1000)",
    )
    dense = parser.add_argument_group("vectors instead of words (extra `dense`)")
    dense.add_argument("--dense", metavar="MODEL", help="sentence-transformers model: hub name or local folder")
    dense.add_argument(
        "--vectors",
        type=Path,
        metavar="FILE",
        help=".npy file with the passages' vectors, one row per passage, in order; MODEL then encodes queries only",
    )
    dense.add_argument(
        "--kind",
        choices=("flat", "hnsw"),
        default="flat",
        help="compare with every vector, or walk a graph: faster, approximate (default: %(default)s)",
    )
    dense.add_argument("--query-prefix", metavar="TEXT", help="put before every query (default: the model's own)")
    dense.add_argument("--passage-prefix", metavar="TEXT", help="put before every passage (default: the model's own)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the index and print its manifest, or check one."""
    if args.check is not None:
        if args.corpora or args.out is not None:
            raise ConfigError(
                "--check builds nothing", fix="pass only the folder of an index, without CORPUS and --out"
            )
        return _check(args.check)
    if not args.corpora or args.out is None:
        raise ConfigError("mtgrpo index needs a CORPUS and --out DIR, or --check DIR", fix="see: mtgrpo index --help")
    from verl_mtgrpo.data.corpus import read_corpora
    from verl_mtgrpo.data.documents import CHUNK_CHARS
    from verl_mtgrpo.data.notes import Notes

    notes, chunk_chars = Notes(), CHUNK_CHARS if args.chunk_chars is None else args.chunk_chars
    start = time.perf_counter()
    source = ", ".join(name if name.startswith("hf:") else Path(name).name for name in args.corpora)
    passages = notes.watching(read_corpora(args.corpora, notes=notes, chunk_chars=chunk_chars))
    index = _build(args, passages, source)
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    manifest = {name: value for name, value in asdict(index.manifest).items() if name != "files"}
    print(json.dumps(manifest, indent=2, ensure_ascii=False))
    print(f"{args.out}: {len(index)} passages, {size / 1e6:.1f} MB, {seconds:.1f} s")
    for line in notes.lines():
        print(line if line.startswith(" ") else f"mtgrpo: warning: {line}", file=sys.stderr)
    return 0


def _build(args: argparse.Namespace, passages: Iterable[Passage], source: str) -> BM25Index | DenseIndex:
    from verl_mtgrpo.retrieval import BM25Index, DenseIndex

    if args.dense is None and args.vectors is None:
        if args.kind != "flat" or args.query_prefix is not None or args.passage_prefix is not None:
            raise ConfigError(
                "--kind, --query-prefix and --passage-prefix belong to an index of vectors", fix="add --dense"
            )
        return BM25Index.build(passages, args.out, source=source, progress=True, analyser=args.analyser)
    if args.analyser != "english":
        raise ConfigError(
            "--analyser belongs to a BM25 index, and an index of vectors has no words", fix="leave out --analyser"
        )
    return DenseIndex.build(
        passages,
        args.out,
        source=source,
        model=args.dense,
        embeddings=args.vectors,
        kind=args.kind,
        query_prefix=args.query_prefix,
        passage_prefix=args.passage_prefix,
        progress=True,
    )


def _check(path: Path) -> int:
    """Read the whole index, compare it with its manifest and print the result."""
    from verl_mtgrpo.retrieval import check_index

    start = time.perf_counter()
    index = check_index(path)
    seconds = time.perf_counter() - start
    print(
        f"{path}: complete. {type(index).__name__} of {len(index)} passages from {index.manifest.source}, checksum "
        f"{index.manifest.checksum}; read all files and passages and searched once in {seconds:.1f} s"
    )
    return 0
