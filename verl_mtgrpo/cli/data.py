"""Write question sets as parquet files that verl trains on: ``mtgrpo data``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.data.known import EDITIONS, KNOWN
from verl_mtgrpo.data.rows import SEARCH_TOOL, SYSTEM_PROMPTS
from verl_mtgrpo.errors import ConfigError

if TYPE_CHECKING:
    from verl_mtgrpo.data.answerable import AnswerCheck

_DESCRIPTION = f"""\
Turn question sets into verl's parquet files: OUT/train.parquet, OUT/val.parquet and OUT/manifest.json.

A SET is a name, read from the Hugging Face hub:
  {", ".join(KNOWN)}
or a file: SQuAD's JSON (1.1 and 2.0; unanswerable questions are left out), or .json, .jsonl, .jsonlines, .csv, .tsv
(all also as .gz) or .parquet with a question and its answers, golden_answers or answer per record, as in all the sets
above, QED and your own; or verl rows (prompt, reward_model), whose system message is replaced; or
hf:NAME[:CONFIG[:SPLIT]], any dataset of such records; or a folder that Dataset.save_to_disk wrote.

A named set trains on its training split and validates on its test split (the development split where test answers
are secret); popqa and bamboogle are for validation only. Files are split: --val-fraction of each goes to validation,
by whole articles if the set names them. Training questions that validation also asks are left out and counted.

Without a network: --local DIR reads the named sets' files from DIR/NAME, for example DIR/nq/train.jsonl and
DIR/nq/test.jsonl, in any of the layouts above.

examples:
  mtgrpo data dev-v2.0.json --out data/squad
  mtgrpo data squad.json hotpotqa.json --val-fraction 0.05 --max-val 300 --out data/mixed
  mtgrpo data nq hotpotqa --test triviaqa popqa 2wikimultihopqa musique --out data/paper_v2
  mtgrpo data nq --local qa --index indexes/wiki --only-answerable --out data/nq
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "data",
        help="make training files from question sets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sets", nargs="+", metavar="SET", help="a question set: name, file or dataset")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--test", nargs="+", default=[], metavar="SET", help="sets for validation only")
    parser.add_argument("--local", type=Path, metavar="DIR", help="read named sets from DIR/NAME instead of the hub")
    parser.add_argument(
        "--edition",
        choices=EDITIONS,
        default=EDITIONS[0],
        help="which copy of the named sets: FlashRAG's, as in Search-R1, or the authors' (default: %(default)s)",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of each file for validation, 0 to 1 (default: 0.1, or 0 with --test)",
    )
    parser.add_argument("--max-train", type=int, metavar="N", help="keep at most N training questions")
    parser.add_argument("--max-val", type=int, metavar="N", help="keep at most N validation questions")
    parser.add_argument("--seed", type=int, default=0, help="decides which question goes where (default: %(default)s)")
    parser.add_argument(
        "--data-source", metavar="NAME", help="name in verl's metrics (default: that of the row, set or file)"
    )
    parser.add_argument("--json", action="store_true", help="print OUT/manifest.json instead of the summary")
    _add_row_options(parser)
    _add_check_options(parser)
    parser.set_defaults(run=run)


def _add_row_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=tuple(SYSTEM_PROMPTS),
        default="hermes",
        help="text format that the default prompt explains, verl's multi_turn.format (default: %(default)s)",
    )
    parser.add_argument(
        "--system-prompt",
        metavar="TEXT",
        help="first message of every prompt, or @FILE to read it; '' for none (default: that of the format)",
    )
    parser.add_argument(
        "--tools",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"the only tools these rows may call, as the tool YAML names them (default: all; {SEARCH_TOOL!r} is ours)",
    )


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    check = parser.add_argument_group(
        "can the index answer? (looks for a gold answer in the results of one search with the question: a lower bound "
        "for multi-hop questions)"
    )
    check.add_argument(
        "--index",
        metavar="DIR",
        help="folder of an index, or address of a search service: report the share of answerable questions",
    )
    check.add_argument("--check-top", type=int, metavar="K", help="look into the K best passages (default: 3)")
    check.add_argument(
        "--only-answerable",
        action="store_true",
        help="train only on questions whose answer was found, and on yes/no questions",
    )


def run(args: argparse.Namespace) -> int:
    """Write the files and print a summary, or the manifest with ``--json``."""
    from verl_mtgrpo.data.dataset import write_dataset

    prompt = SYSTEM_PROMPTS[args.format] if args.system_prompt is None else _text_or_file(args.system_prompt)
    manifest = write_dataset(
        args.sets,
        args.out,
        tests=args.test,
        edition=args.edition,
        local=args.local,
        val_fraction=args.val_fraction,
        max_train=args.max_train,
        max_val=args.max_val,
        seed=args.seed,
        data_source=args.data_source,
        system_prompt=prompt,
        tools=args.tools,
        check=_answer_check(args),
        only_answerable=args.only_answerable,
        progress=True,
    )
    print(json.dumps(manifest, indent=2, ensure_ascii=False) if args.json else "\n".join(_summary(args, manifest)))
    return 0


def _answer_check(args: argparse.Namespace) -> AnswerCheck | None:
    if args.index is None:
        if args.only_answerable or args.check_top is not None:
            raise ConfigError("--only-answerable and --check-top need an index to look into", fix="add --index DIR")
        return None
    from verl_mtgrpo.data.answerable import AnswerCheck
    from verl_mtgrpo.retrieval import open_retriever

    top = 3 if args.check_top is None else args.check_top
    return AnswerCheck(open_retriever(args.index), top=top, name=Path(args.index.rpartition("@")[2]).name)


def _summary(args: argparse.Namespace, manifest: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name in dict.fromkeys(name for name in args.sets if name in KNOWN):
        if KNOWN[name][args.edition].train is None:
            lines.append(f"{name} has no training split: it is used for validation only")
    for source in manifest["sources"]:
        if count := source.get("numbers_written_as_text"):
            name = next(str(source[key]) for key in ("set", "file", "folder", "dataset") if key in source)
            lines.append(
                f"{name}: {count} rows have a number as reward_model.ground_truth; here it is text, because the "
                "packaged rewards compare text and a run refuses numbers"
            )
    for name, count in manifest["left_out_as_asked_in_validation"].items():
        lines.append(f"{name}: {count} training questions are left out because validation also asks them")
    checked = manifest.get("answerability", {"splits": {}})
    for split, tallies in checked["splits"].items():
        for name, tally in tallies.items():
            if tally["searched"]:
                lines.append(
                    f"{name}, {split}: {tally['answerable']} of {tally['searched']} questions ({tally['share']:.1%}) "
                    f"have a gold answer in the first {checked['top']} passages; "
                    f"{tally['yes_no']} yes/no not counted"
                )
    for name, info in manifest["splits"].items():
        lines.append(f"{args.out / info['file']}: {info['rows']} {name} questions")
    if "val" not in manifest["splits"]:
        lines.append(
            "there are no validation questions, but verl needs a file of them (data.val_files): "
            "raise --val-fraction, or name a set with --test"
        )
    lines.append(f"{args.out / 'manifest.json'}: sources, options, counts and checksums")
    return lines


def _text_or_file(value: str) -> str:
    if not value.startswith("@"):
        return value
    path = Path(value[1:])
    if not path.is_file():
        raise ConfigError(f"--system-prompt {value}: {path} is not a file", fix="write the path of a text file after @")
    return path.read_text(encoding="utf-8").strip()
