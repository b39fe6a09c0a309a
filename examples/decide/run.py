"""Evaluate a demo policy with ``posterior`` and with plain sampling, at equal generated tokens. Nothing is trained.

    python examples/decide/run.py --out runs/demo --candidates 4

The policy is that of `mtgrpo demo` before its training, or a folder of your own (--policy). Plain sampling is shown as
it is, and as the majority answer of as many rollouts per question as the tokens of one decided rollout pay for.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from verl_mtgrpo.demo.session import plan_run, prepare_assets
from verl_mtgrpo.demo.worlds import PAPER, WORLDS
from verl_mtgrpo.launch.command import run_train_command
from verl_mtgrpo.report.tables import markdown_table
from verl_mtgrpo.rewards import Transcript
from verl_mtgrpo.rewards.answers import last_answer

SCORER = Path(__file__).with_name("scorer.py")
ROLLOUT = "actor_rollout_ref.rollout"


def main() -> None:
    """Evaluate twice and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo's world and policy")
    parser.add_argument("--world", default=PAPER, choices=[*WORLDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", type=Path, help="a policy of the same world; default: the demo's before training")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--samples", type=int, default=8, help="plain rollouts per question")
    args = parser.parse_args()
    assets = prepare_assets(args.out, seed=args.seed, world=args.world)
    usual = WORLDS[args.world].training
    plan = plan_run(args.out, assets, preset="mt_grpo", seed=args.seed, settings=usual, world=args.world)
    found = {}
    for name, samples, more in (
        ("plain", args.samples, []),
        ("posterior", 1, decided(args.candidates, args.alpha)),
    ):
        folder = args.out / f"decide-{name}-seed{args.seed}"
        own = replace(plan, folder=folder, settings=replace(plan.settings, validation_samples=samples))
        folder.mkdir(parents=True, exist_ok=True)
        command = own.command(metrics=folder / "metrics.jsonl", validate_first=True)
        policy = [f"actor_rollout_ref.model.path={args.policy.resolve()}"] if args.policy else []
        overrides = (*command.overrides, "trainer.val_only=True", *policy, *more)
        code = run_train_command(replace(command, overrides=overrides), log=folder / "eval.log")
        if code:
            raise SystemExit(f"the evaluation ended with code {code}; see {folder / 'eval.log'}")
        found[name] = [json.loads(line) for line in (folder / "validation" / "0.jsonl").open(encoding="utf-8")]
    print(describe(found["plain"], found["posterior"], args.candidates))


def decided(candidates: int, alpha: float) -> list[str]:
    """Return the overrides of the decided evaluation."""
    settings = {"by": "posterior", "when": "validation", "candidates": candidates, "alpha": alpha}
    settings["score"] = f"{SCORER.resolve()}:supported"
    loop = f"{ROLLOUT}.agent.default_agent_loop=mtgrpo_decide_agent"
    return [loop, *(f"trainer.turn.decide.{key}={value}" for key, value in settings.items())]


def tokens_of(row: dict[str, Any]) -> float:
    """Count the generated tokens of a rollout, those of proposals that were not taken included."""
    spans = [turn["span"] for turn in json.loads(row["transcript"])["turns"]]
    return sum(end - start for start, end in spans) + float(row.get("decide/extra_tokens") or 0.0)


def majority(rows: Sequence[dict[str, Any]], several: int) -> float:
    """Return the share of questions whose most frequent answer among the first ``several`` rollouts is right."""
    of_question: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        of_question[row["question_id"] or row["input"]].append(row)
    right = []
    for found in of_question.values():
        answers = [last_answer([turn.text for turn in transcript(row).turns]) for row in found[:several]]
        given = Counter(answer for answer in answers if answer)
        best = given.most_common(1)[0][0] if given else None
        right.append(max(row["outcome/em"] for row, said in zip(found, answers, strict=False) if said == best))
    return fmean(right)


def transcript(row: dict[str, Any]) -> Transcript:
    """Return the transcript of a row of a dump."""
    return Transcript.from_dict(json.loads(row["transcript"]))


def describe(plain: Sequence[dict[str, Any]], posterior: Sequence[dict[str, Any]], candidates: int) -> str:
    """Return the table as Markdown."""
    costs = [fmean(map(tokens_of, rows)) for rows in (plain, posterior)]
    several = max(1, round(costs[1] / costs[0]))
    right = [fmean(row["outcome/em"] for row in rows) for rows in (plain, posterior)]
    rows = [
        ["plain sampling", f"{right[0]:.3f}", f"{costs[0]:.0f}"],
        [f"plain sampling, majority of {several}", f"{majority(plain, several):.3f}", f"{several * costs[0]:.0f}"],
        [f"posterior, k = {candidates}", f"{right[1]:.3f}", f"{costs[1]:.0f}"],
    ]
    return markdown_table(["method", "exact match", "generated tokens per question"], rows)


if __name__ == "__main__":
    main()
