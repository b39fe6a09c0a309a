"""``mtgrpo data``: question sets -> parquet files that verl trains on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from verl_mtgrpo.data.rows import SYSTEM_PROMPTS
from verl_mtgrpo.errors import ConfigError

_DESCRIPTION = """\
Turn question sets into verl's parquet files: OUT/train.parquet, OUT/val.parquet and OUT/manifest.json.

Understood are SQuAD's JSON (1.1 and 2.0; unanswerable questions are left out), and .json, .jsonl (both also
as .gz) or .parquet files of records with a question and its answers, golden_answers or answer, as in NQ-open,
HotpotQA and MuSiQue. Validation gets whole articles where the set names them.

examples:
  mtgrpo data dev-v2.0.json --out data/squad
  mtgrpo data squad.json hotpotqa.json --val-fraction 0.05 --max-val 300 --out data/mixed
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "data",
        help="make training files from question sets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a question set")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="share of each set for validation, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument("--max-train", type=int, metavar="N", help="keep at most N training questions")
    parser.add_argument("--max-val", type=int, metavar="N", help="keep at most N validation questions")
    parser.add_argument("--seed", type=int, default=0, help="decides who goes where (default: %(default)s)")
    parser.add_argument("--data-source", metavar="NAME", help="name in verl's metrics (default: the file's name)")
    parser.add_argument(
        "--format",
        choices=tuple(SYSTEM_PROMPTS),
        default="hermes",
        help="text format that the default prompt explains, verl's multi_turn.format (default: %(default)s)",
    )
    parser.add_argument(
        "--system-prompt",
        metavar="TEXT",
        help="first message of every prompt, or @FILE with it; '' for none (default: the format's own)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files and print the manifest."""
    from verl_mtgrpo.data.dataset import write_dataset

    prompt = SYSTEM_PROMPTS[args.format] if args.system_prompt is None else _text_or_file(args.system_prompt)
    manifest = write_dataset(
        args.files,
        args.out,
        val_fraction=args.val_fraction,
        max_train=args.max_train,
        max_val=args.max_val,
        seed=args.seed,
        data_source=args.data_source,
        system_prompt=prompt,
        progress=True,
    )
    print(json.dumps(manifest, indent=2, ensure_ascii=False))
    for name, info in manifest["splits"].items():
        print(f"{args.out / info['file']}: {info['rows']} {name} questions")
    return 0


def _text_or_file(value: str) -> str:
    if not value.startswith("@"):
        return value
    path = Path(value[1:])
    if not path.is_file():
        raise ConfigError(f"--system-prompt {value}: {path} is not a file")
    return path.read_text(encoding="utf-8").strip()
