"""Search an index from the command line: ``mtgrpo query``."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
import unicodedata
from typing import TYPE_CHECKING

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError

if TYPE_CHECKING:
    from verl_mtgrpo.passages import Passage

_DESCRIPTION = """\
Search an index as the search tool does, and print the best passages with their scores.

INDEX is what the tool's `index` may be: a folder that `mtgrpo index` wrote, or the URL of a search service; with --with
several of them, whose ranks are fused. Scores of different kinds of index cannot be compared.

  mtgrpo query indexes/wiki "who wrote The Hobbit"
  mtgrpo query http://127.0.0.1:8000 "who wrote The Hobbit" --top 10
  mtgrpo query indexes/wiki "who wrote The Hobbit" --with indexes/e5
"""
_WIDTH = 110


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "query",
        help="search an index and print the best passages",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("index", metavar="INDEX", help="folder of an index, or URL of a search service")
    parser.add_argument("words", nargs="+", metavar="WORDS", help="the query; several words are one query")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="passages to print (default: %(default)s)")
    parser.add_argument("--with", dest="others", action="append", default=[], metavar="INDEX", help="search this too")
    parser.add_argument(
        "--chars", type=int, default=600, metavar="N", help="characters of a text, 0 for all (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON record per passage, with its whole text")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable with the service's bearer token")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search and print the passages."""
    if args.top < 1 or args.chars < 0:
        name, value = ("--top", args.top) if args.top < 1 else ("--chars", args.chars)
        raise ConfigError(f"{name} is {value}", expected="1 or more" if name == "--top" else "0 or more")
    from verl_mtgrpo.retrieval import NOTHING_FOUND, open_retriever
    from verl_mtgrpo.retrieval.query import clean_query

    query = clean_query(" ".join(args.words))
    if not query:
        raise ConfigError("the query is empty", fix='give it words: mtgrpo query INDEX "words"')
    retriever = open_retriever([args.index, *args.others], token_env=args.token_env)
    start = time.perf_counter()
    (hits,) = retriever.search([query], args.top)
    seconds = time.perf_counter() - start
    for rank, hit in enumerate(hits, start=1):
        print(_as_json(rank, hit) if args.json else _as_text(rank, hit, args.chars))
    said = f"{len(hits)} passages in {1000 * seconds:.0f} ms" if hits else NOTHING_FOUND
    print(said, file=sys.stderr if args.json else sys.stdout)
    return 0


def _as_json(rank: int, hit: Passage) -> str:
    return json.dumps({"rank": rank, "score": hit.score, "id": hit.id, "title": hit.title, "text": hit.text})


def _as_text(rank: int, hit: Passage, chars: int) -> str:
    text = hit.text if not chars or len(hit.text) <= chars else hit.text[:chars].rstrip() + " …"
    lines = [
        line
        for paragraph in _printable(text).splitlines()
        for line in textwrap.wrap(paragraph, _WIDTH, initial_indent="   ", subsequent_indent="   ")
    ]
    head = f"{rank}. {hit.score:.4g}  {_printable(hit.title) or '(no title)'}  [{_printable(hit.id)}]"
    return "\n".join([" ".join(head.split("\n")), *lines, ""])


def _printable(text: str) -> str:
    """Return the text without characters that a terminal obeys: whoever wrote the passage is not trusted."""
    return "".join(
        one if one == "\n" or unicodedata.category(one) not in ("Cc", "Cf", "Cs") else " " if one in "\t\r" else "�"
        for one in text
    )
