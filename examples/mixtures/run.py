"""Compare two tiny policies, a mixture of both, and a router that learns which of them to ask for each turn.

    python examples/mixtures/run.py --out runs/mixtures
    python examples/mixtures/run.py --policies A B --assets ASSETS    # two policies of your own, of one world

Both are served on the CPU. The router learns from the outcome alone. Then verl validates all methods on the same
questions, in one start: each server alone, the mixture, a router that asks at random, and the one that has learnt.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.data.rows import write_parquet
from verl_mtgrpo.demo.assets import DemoAssets
from verl_mtgrpo.demo.runs import RunPlan
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.launch.command import TrainCommand, hydra_value, run_train_command
from verl_mtgrpo.launch.provenance import describe_origin
from verl_mtgrpo.own_code import load_own
from verl_mtgrpo.report.tables import markdown_table, mean_and_spread

HERE = Path(__file__).resolve().parent
SCORER = HERE.parent / "decide" / "scorer.py"
DECIDE = "trainer.turn.decide"
LIMITS = {"max_tokens": 32, "result_role": "tool"}
"""What servers of the demo's policies are told of a turn."""
SETTINGS = DemoSettings(steps=1, response_length=160)
SEPARATOR = "/"


def main() -> None:
    """Learn and validate once per seed, and print the table."""
    args = arguments().parse_args()
    found: list[dict[str, dict[str, float]]] = []
    for seed in args.seeds:
        one = OneSeed(args, seed)
        found.append(one.measure())
        print(f"\nseed {seed}\n\n{describe([found[-1]])}\n", flush=True)
    text = f"{describe_origin()}; seeds {args.seeds}\n\n{describe(found)}\n"
    (args.out / "mixtures.md").write_text(text, encoding="utf-8")
    print(text)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mixtures"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--policies", type=Path, nargs=2, help="two folders; default: those of policies.py")
    parser.add_argument("--assets", type=Path, help="with --policies: folder of `mtgrpo demo` with their world")
    parser.add_argument("--rounds", type=int, default=6, help="steps of the router")
    parser.add_argument("--questions", type=int, default=12, help="questions per round")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per question")
    parser.add_argument("--lr", type=float, default=8.0)
    parser.add_argument("--estimator", default="turn_rloo", choices=usable())
    parser.add_argument("--alpha", type=float, default=0.25, help="weight of the mixture's KL")
    parser.add_argument("--reference", help="the mixture's reference, FILE.py:FUNCTION; default: no KL")
    parser.add_argument("--samples", type=int, default=2, help="validation rollouts per question")
    return parser


def usable() -> list[str]:
    """Return the estimators that need rewards, mask and groups only."""
    return [name for name, one in ESTIMATORS.items() if not one.fields]


@dataclass(frozen=True)
class OneSeed:
    """The comparison for one seed."""

    args: argparse.Namespace
    seed: int

    def measure(self) -> dict[str, dict[str, float]]:
        """Return what was measured of each method."""
        args = self.args
        policies, assets = self.policies()
        with ExitStack() as running:
            serve = load_own(f"{HERE / 'server.py'}:serve", "the server", "function")
            servers = {name: running.enter_context(serve(path, seed=self.seed)) for name, path in policies.items()}
            options = {"servers": list(servers.values()), **LIMITS}
            rounds = self.learnt(assets, options)
            methods = methods_of(list(servers), options, rounds[-1]["logits"], args.alpha, args.reference)
            return measured(self.validated(assets, methods), list(methods))

    def policies(self) -> tuple[dict[str, Path], DemoAssets]:
        """Return the policies by name, and the world that they live in."""
        if self.args.policies:
            folder = self.args.assets
            if folder is None:
                raise SystemExit("--policies needs --assets: the folder of the world that both were made for")
            files = (folder / "train.parquet", folder / "val.parquet", folder / "search_tool.yaml")
            first = self.args.policies[0]
            return {one.name: one for one in self.args.policies}, DemoAssets(first, folder / "index", *files, {})
        prepare = load_own(f"{HERE / 'policies.py'}:prepare", "the policies", "function")
        pair = prepare(self.args.out / f"assets-seed{self.seed}", seed=self.seed)
        print(f"how the policies behave: {json.dumps(pair.start)}", flush=True)
        return {name: one.policy for name, one in pair.assets.items()}, next(iter(pair.assets.values()))

    def learnt(self, assets: DemoAssets, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rounds of a router that learns from outcomes."""
        args, folder = self.args, self.args.out / f"router-seed{self.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        command = self.command(assets, folder, [f"{DECIDE}.by={hydra_value(f'{HERE}/mixture.py:Router')}"])
        os.environ.update(command.variables())
        module = f"{HERE / 'learn.py'}"
        player = load_own(f"{module}:Player", "the player", "class")(command.argv(), folder / "asked.jsonl")
        given = {name: getattr(args, name) for name in ("estimator", "rounds", "questions", "rollouts", "lr")}
        learn = load_own(f"{module}:learn", "the player", "function")
        rounds = learn(player, assets.train_file, options, turns=SETTINGS.assistant_turns, seed=self.seed, **given)
        (folder / "rounds.json").write_text(json.dumps(rounds, indent=1), encoding="utf-8")
        return rounds

    def validated(self, assets: DemoAssets, methods: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return verl's dump of a validation in which each method answers all questions."""
        folder = self.args.out / f"validation-seed{self.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        questions = pq.read_table(assets.val_file).to_pylist()
        rows = folder / "questions.parquet"
        write_parquet(for_each(questions, list(methods)), rows)
        file = folder / "methods.json"
        file.write_text(json.dumps({"size": len(questions), "deciders": list(methods.values())}), encoding="utf-8")
        by = [
            f"{DECIDE}.by={hydra_value(f'{HERE}/mixture.py:Methods')}",
            f"{DECIDE}.score={hydra_value(f'{SCORER}:supported')}",
            f"+{DECIDE}.options.file={hydra_value(file.resolve())}",
            "trainer.val_only=True",
        ]
        command = self.command(replace(assets, val_file=rows), folder, by)
        code = run_train_command(command, log=folder / "eval.log")
        if code:
            raise SystemExit(f"the validation ended with code {code}; see {folder / 'eval.log'}")
        return [json.loads(line) for line in (folder / "validation" / "0.jsonl").open(encoding="utf-8")]

    def command(self, assets: DemoAssets, folder: Path, more: Sequence[str]) -> TrainCommand:
        """Return verl's command line."""
        settings = replace(SETTINGS, validation_samples=self.args.samples)
        plan = RunPlan(folder=folder, preset="mt_grpo", seed=self.seed, assets=assets, settings=settings)
        command = plan.command(metrics=folder / "metrics.jsonl", validate_first=True)
        loop = "actor_rollout_ref.rollout.agent.default_agent_loop=mtgrpo_decide_agent"
        return replace(command, overrides=(*command.overrides, loop, f"{DECIDE}.when=validation", *more))


def methods_of(
    names: Sequence[str], options: Mapping[str, Any], learnt: Any, alpha: float, reference: str | None
) -> dict[str, dict[str, Any]]:
    """Return the methods that are compared, as ``mixture.py:Methods`` reads them."""
    router = {"by": "Router", **options}
    alone = {f"{name} alone": {**router, "logits": [[0.0 if one == name else -1e9 for one in names]]} for name in names}
    return {
        **alone,
        "mixture": {"by": "Mixture", **options, "alpha": alpha, "reference": reference},
        "router, at random": router,
        "router, learnt": {**router, "logits": learnt},
    }


def for_each(questions: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return the questions once per method, numbered one after the other, with ids that begin with the method."""
    rows: list[dict[str, Any]] = []
    for method in methods:
        for question in questions:
            info = question["extra_info"]
            own = {**info, "index": len(rows), "id": f"{method}{SEPARATOR}{info['id']}"}
            rows.append({**question, "extra_info": own})
    return rows


def measured(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return exact match, answer in results and generated tokens of each method."""
    tokens_of = load_own(f"{HERE.parent / 'decide' / 'run.py'}:tokens_of", "the tokens", "function")
    found: dict[str, dict[str, float]] = {}
    for method in methods:
        own = [row for row in rows if row["question_id"].partition(SEPARATOR)[0] == method]
        hits = [row["tool/hit"] for row in own if row.get("tool/hit") is not None]
        found[method] = {
            "exact match": fmean(row["outcome/em"] for row in own),
            "answer in results": fmean(hits),
            "generated tokens per question": fmean(map(tokens_of, own)),
        }
    return found


def describe(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return the table as Markdown: means over the seeds, and their range if there are several."""

    def cell(method: str, name: str) -> str:
        return mean_and_spread([one[method][name] for one in seeds], digits=0 if name.startswith("generated") else 3)

    measures = list(next(iter(seeds[0].values())))
    return markdown_table(["method", *measures], [[one, *(cell(one, name) for name in measures)] for one in seeds[0]])


if __name__ == "__main__":
    main()
