"""Train for sixty steps while everything around the policy fails, and account for every rollout.

    python examples/chaos/run.py                                # minutes on two cores; writes README.md beside this
    python examples/chaos/run.py --table table.md --seed 1      # another schedule, elsewhere

This is a real run on the CPU: verl's trainer with two rollout workers and two reward workers, the toy policy and a real
``mtgrpo serve``. Faults come from outside, as signals and files (``faults.py``), except for malformed completions
(``malformed.py``). If a fault stops the training, it is started again with the same command, as a user would do.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml
from accounts import COUNTS, Start, check, read_start
from faults import Faults, SearchService

from verl_mtgrpo.demo.toy import HERMES, make_toy
from verl_mtgrpo.integration.hydra.resolvers import asset
from verl_mtgrpo.launch.command import TrainCommand, hydra_value, run_train_command
from verl_mtgrpo.launch.failure import failure_report
from verl_mtgrpo.launch.progress import ProgressLine
from verl_mtgrpo.launch.provenance import describe_machine, describe_source

HERE = Path(__file__).parent
STEPS, QUESTIONS, ROLLOUTS, SAVE_EVERY = 60, 4, 8, 5
MALFORMED = 0.05
STARTS = 4


def main() -> int:
    """Train, cause the faults, count the rollouts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the run, new (default: runs/chaos/<time>)")
    parser.add_argument("--table", type=Path, default=HERE / "README.md", help="where the table goes")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule, the malformed output and the training")
    args = parser.parse_args()
    out = (args.out or Path("runs/chaos") / time.strftime("%Y%m%d-%H%M%S")).resolve()
    out.mkdir(parents=True)
    began = time.monotonic()
    assets = make_toy(out / "assets", HERMES, questions=2 * QUESTIONS)
    service = SearchService(assets / "index")
    faults = Faults(args.seed, service, dumps=out / "rollouts")
    faults.fill_disk()
    service.start()
    try:
        stops = train_to_end(out, assets, faults)
    finally:
        service.kill()
    starts = [read_start(out / f"metrics-{n}.jsonl", out / f"journal-{n}.jsonl") for n in range(1, len(stops) + 2)]
    sums = check(starts, STEPS)
    text = table(faults, starts, stops, sums, logs=sorted(out.glob("train-*.log")), seconds=time.monotonic() - began)
    args.table.write_text(text, encoding="utf-8")
    print(text)
    return 0


def train_to_end(out: Path, assets: Path, faults: Faults) -> list[str]:
    """Start the training again and again until it ends well; return the message of each stop before."""
    stops: list[str] = []
    while True:
        number = len(stops) + 1
        log, journal = out / f"train-{number}.log", out / f"journal-{number}.jsonl"
        command = command_of(out, assets, faults, journal=journal, metrics=out / f"metrics-{number}.jsonl")
        line = ProgressLine(out / f"metrics-{number}.jsonl", steps=STEPS, label=f"start {number}")
        with faults.watching(journal):
            code = run_train_command(command, log=log, on_tick=line.tick)
        line.close()
        if code == 0:
            return stops
        stops.append(failure_report(code, log))
        print(stops[-1], flush=True)
        if number == STARTS:
            raise SystemExit(f"the training stopped {STARTS} times")
        faults.make_room()


def command_of(out: Path, assets: Path, faults: Faults, *, journal: Path, metrics: Path) -> TrainCommand:
    """Return the trainer's command line, the same for every start."""
    tools = yaml.safe_load(Path(asset("tools/search_tool.yaml")).read_text(encoding="utf-8"))
    tools["tools"][0]["config"].update(index=faults.service.url, patience_s=2.0)
    (out / "tool.yaml").write_text(yaml.safe_dump(tools), encoding="utf-8")
    loops = [{"name": "mtgrpo_tool_agent", "_target_": "malformed.MalformedAgentLoop"}]
    (out / "loops.yaml").write_text(yaml.safe_dump(loops), encoding="utf-8")
    rollout = "actor_rollout_ref.rollout"
    values = {
        "actor_rollout_ref.model.path": assets / "policy",
        "actor_rollout_ref.actor.ppo_mini_batch_size": QUESTIONS,
        # Small, so that the toy policy still has both habits in the last step: searching and guessing.
        "actor_rollout_ref.actor.optim.lr": 1e-6,
        "data.train_files": assets / "train.parquet",
        "data.val_files": assets / "val.parquet",
        "data.train_batch_size": QUESTIONS,
        "data.max_prompt_length": 64,
        "data.max_response_length": 160,
        "data.seed": faults.seed,
        f"{rollout}.seed": faults.seed,
        f"{rollout}.n": ROLLOUTS,
        f"{rollout}.agent.num_workers": 2,
        f"{rollout}.agent.agent_loop_config_path": out / "loops.yaml",
        f"{rollout}.multi_turn.max_assistant_turns": 2,
        f"{rollout}.multi_turn.tool_config_path": out / "tool.yaml",
        "reward.num_workers": 2,
        "trainer.total_training_steps": STEPS,
        "trainer.total_epochs": STEPS,
        "trainer.save_freq": SAVE_EVERY,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,
        "trainer.resume_mode": "auto",
        "trainer.default_local_dir": out / "checkpoints",
        "trainer.rollout_data_dir": faults.dumps,
        "trainer.logger": ["console", "file"],
        "hydra.run.dir": out / "hydra",
    }
    env = {
        "CHAOS_JOURNAL": str(journal),
        "CHAOS_SEED": str(faults.seed),
        "CHAOS_MALFORMED": str(MALFORMED),
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    overrides = tuple(f"{key}={hydra_value(value)}" for key, value in values.items())
    return TrainCommand(preset="mt_grpo", cpu=True, overrides=overrides, env=env)


def table(
    faults: Faults,
    starts: Sequence[Start],
    stops: Sequence[str],
    sums: dict[str, int],
    *,
    logs: Sequence[Path],
    seconds: float,
) -> str:
    """Return the README of this folder."""
    said = [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = sorted((step, name, seen(name, step, starts, said)) for name, step in faults.steps.items())
    rows.append((faults.disk_full, "disk full at the dump of this step", stopped(starts, stops)))
    generations = sum(start.generations for start in starts)
    replaced = sum(sum(start.malformed.values()) for start in starts)
    kinds = len({kind for start in starts for kind in start.malformed})
    fared = f"{replaced} of {generations} completions ({replaced / generations:.1%}), of {kinds} kinds; {calls(starts)}"
    fared += f"; {sums['failed']} rollouts failed"
    listed = [f"| {step} | {name} | {text.replace(str(logs[0].parent), 'RUN')} |" for step, name, text in sorted(rows)]
    machine = describe_machine()
    return TEMPLATE.format(
        command=f"python examples/chaos/run.py --seed {faults.seed}",
        source=describe_source(),
        machine=machine["machine"],
        packages=machine["packages"],
        duration=f"{seconds / 60:.0f} minutes, {len(starts)} starts",
        faults="\n".join(listed),
        malformed=fared,
        fates="\n".join(f"| {name} | {sums[name]} |" for name in COUNTS),
        steps=f"1 to {STEPS}, each once",
        **{name.replace(" ", "_"): sums[name] for name in ("asked", "undone", "cut off", "begun")},
    )


def seen(name: str, step: int, starts: Sequence[Start], said: Sequence[str]) -> str:
    """Return how the run handled a fault."""
    if name.startswith("retriever"):
        rows = {n: start.counts(n) for start in starts for n in start.rows if step <= n <= step + 2}
        parts = [f"step {n}: {counts['dropped']} dropped, {counts['trained']} trained" for n, counts in rows.items()]
        return "; ".join(parts) + "; started again in step " + str(step + 2)
    kind = name.removesuffix(" killed")
    message = next((line for line in said if f"the {kind} " in line and " died" in line), None)
    if message is None:
        raise AssertionError(f"nothing was said of: {name}")
    counts = next(start.counts(step) for start in starts if step in start.rows)
    numbers = ", ".join(f"{counts[fate]} {fate}" for fate in ("trained", "dropped", "alone", "failed", "repeated"))
    took = next(start.rows[step]["timing_s/step"] for start in starts if step in start.rows)
    message = re.sub(f"^.*?(?=the {kind})", "", message)
    return f"`{message}` Training continues; rollouts of this step, which took {took:.0f} s: {numbers}"


def calls(starts: Sequence[Start]) -> str:
    """Return the number of tool calls in all steps that failed because of the model's text, by kind."""
    kinds: Counter[str] = Counter()
    for start in starts:
        for step, row in start.rows.items():
            counts = start.counts(step)
            for name in ("bad_arguments", "not_carried_out", "no_query", "unknown_tool", "tool_exception"):
                kinds[name] += round(
                    row.get(f"tool/errors/{name}", 0.0) * (counts["trained"] + counts["dropped"] + counts["alone"])
                )
    return "calls that failed: " + ", ".join(f"{count} {name}" for name, count in kinds.items() if count)


def stopped(starts: Sequence[Start], stops: Sequence[str]) -> str:
    """Describe how a stop ended and where the next start began."""
    parts = []
    for number, stop in enumerate(stops):
        lines = [line.strip() for line in stop.splitlines() if "full log" not in line]
        parts.append(
            f"`{' / '.join(lines)}` Space freed, started again: continues at step {min(starts[number + 1].rows)}"
        )
    return "; ".join(parts)


TEMPLATE = """\
# Chaos: sixty steps, everything fails once

Written by `{command}` ([run.py](run.py)); {source}.
{machine}; {packages}. {duration}.

The toy policy is trained on the CPU by verl's trainer, with two rollout workers, two reward workers and a real
`mtgrpo serve`. What is done to it comes from outside ([faults.py](faults.py)); malformed completions are put in the
place of the rollout server's by an agent loop of this folder ([malformed.py](malformed.py)). The full disk is a link to
`/dev/full` in the place of one dump, so the room that the message names is the real disk's. Where a fault stops the
training, it is started again with the same command.

| step | what was done | what was seen |
|---|---|---|
{faults}
| all | malformed completions | {malformed} |

Steps in the metrics: {steps}. What became of the rollouts of these steps, by the metrics `rollouts_total/...`:

| rollouts | number |
|---|---|
{fates}

asked = trained + dropped + alone + failed + filtered, in every step. `repeated` were lost with their worker and asked
again;
they are among the asked once.

The rollout workers keep a journal of their own ([accounts.py](accounts.py) compares it step by step with the metrics):
{begun} rollouts were begun = {asked} of the steps above + {undone} of logged steps that were trained again from the
checkpoint + {cut_off} of steps that the stop cut off. None is missing.
"""


if __name__ == "__main__":
    sys.exit(main())
