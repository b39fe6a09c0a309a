"""Run the kit's first part: each estimator on a GPU against the host, its synchronisations, time and memory.

    python -m tests.gpu.estimators --device cuda     # needs torch and numpy, nothing else; about a minute
    python -m tests.gpu.estimators --device cpu      # the form for devices on a simulated one, times of the host

Fails (exit code 1) if an advantage differs from the host's by more than 1e-5, if a second call gives other bits, or if
the host waits for the GPU more than once in a call. Times and memory are printed and judge nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.gpu import machine, measure, simulated
from tests.gpu.arguments import make_parser, parse_sizes
from tests.gpu.made import GROUP, Rollouts, make_rollouts, verl_grpo
from verl_mtgrpo.credit import ESTIMATORS

TOLERANCE = 1e-5  # of an advantage, absolute, and relative for those above 1
AGREE_AT, TURNS = (64, 16384), 16
MASK, FLOAT = 8, 4  # bytes of a token in the mask (int64, as verl's) and in every other tensor

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "mt_grpo": ({}, {"missing_turn": "exclude", "turn_coef": 0.5}, {"scale": "none", "discount": 0.9}),
    "turn_rloo": ({}, {"scale": "std"}),
    "turn_gae": ({}, {"whiten": False, "lam": 0.9}),
    "bilevel_gae": ({}, {"whiten": False, "lam": 0.9, "token_discount": 0.99}),
}
"""Settings with which the code takes another path; other estimators run with their defaults."""


@dataclass
class Report:
    """The report: results for a file, failures, and parts that could not be run."""

    machine: dict[str, str]
    agreement: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    def write(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def call(name: str, rollouts: Rollouts, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Call an estimator on made-up rollouts."""
    fields = dict.fromkeys(ESTIMATORS[name].fields, rollouts.values)
    return ESTIMATORS[name](rollouts.rewards, rollouts.mask, rollouts.index, **fields, **settings)


def measurable(report: Report) -> list[str]:
    """Return the estimators for which made-up fields are enough."""
    names = []
    for name in ESTIMATORS:
        if unknown := set(ESTIMATORS[name].fields) - {"values", "values_after"}:
            report.not_run.append(f"estimator {name}, because it needs the fields {sorted(unknown)}")
        else:
            names.append(name)
    return names


def check_agreement(report: Report, device: str, size: tuple[int, int] = AGREE_AT) -> None:
    """Compare each estimator on the device with the host; on a CPU, use the simulated device."""
    rollouts = make_rollouts(*size, turns=TURNS)
    print(f"(B, T) = {size}, up to {TURNS} turns, groups of {GROUP}: largest difference from the host, and how often")
    print("the host waits for the device" + ("" if device == "cuda" else ", on a simulated device"))
    for name in measurable(report):
        for settings in SETTINGS.get(name, ({},)):
            expected = call(name, rollouts, settings)
            try:
                got, repeated, waits = (_on_gpu if device == "cuda" else _simulated)(name, rollouts, settings)
            except measure.CannotCount as error:
                report.failed.append(f"{name}: the synchronisations could not be counted: {error}")
                continue
            except (RuntimeError, TypeError) as error:
                report.failed.append(f"{name}{settings or ''} does not run on the device: {error}")
                continue
            _judge(report, f"{name} {settings or ''}".strip(), expected, got, repeated, waits)


def _judge(
    report: Report, name: str, expected: tuple[Tensor, ...], got: tuple[Tensor, ...], repeated: bool, waits: list[str]
) -> None:
    difference = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    largest = max(float(b.abs().max()) for b in expected)
    agrees = all(torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in zip(got, expected, strict=True))
    row = {"estimator": name, "difference": difference, "largest": largest, "same_again": repeated, "waits": waits}
    report.agreement.append(row)
    print(f"  {name:62s} {difference:8.1e} of up to {largest:6.2f}   waits {len(waits)}")
    if not agrees:
        report.failed.append(f"{name}: differs from the host by {difference:.1e}, expected at most {TOLERANCE}")
    if not repeated:
        report.failed.append(f"{name}: a second call on the same tensors gave other bits")
    if len(waits) > 1:
        counted = ", ".join(f"{count} x {what}" for what, count in Counter(waits).items())
        report.failed.append(f"{name}: the host waits {len(waits)} times for the device, expected 1 ({counted})")


def _on_gpu(name: str, rollouts: Rollouts, settings: dict[str, Any]) -> tuple[tuple[Tensor, ...], bool, list[str]]:
    there = rollouts.to("cuda")
    result = call(name, there, settings)
    again = call(name, there, settings)
    count = measure.count_synchronisations(lambda: call(name, there, settings))
    same = all(torch.equal(a, b) for a, b in zip(result, again, strict=True))
    return tuple(part.cpu() for part in result), same, ["counted by torch"] * count


def _simulated(name: str, rollouts: Rollouts, settings: dict[str, Any]) -> tuple[tuple[Tensor, ...], bool, list[str]]:
    with simulated.device() as trips:
        there = rollouts.to(simulated.DEVICE)
        trips.clear()
        result = call(name, there, settings)
        waits = list(trips)
        again = call(name, there, settings)
        kept, other = (tuple(part.cpu() for part in parts) for parts in (result, again))
    return kept, all(torch.equal(a, b) for a, b in zip(kept, other, strict=True)), waits


def check_times(report: Report, device: str, sizes: tuple[tuple[int, int], ...], repeats: int = 15) -> None:
    """Print a table per size: time, as a multiple of verl's grpo and of a copy of the same bytes, and memory."""
    grpo_name, grpo = verl_grpo()
    if grpo_name != "verl grpo":
        report.not_run.append(
            "times beside verl's own grpo, because verl is not installed; beside a copy of its formula"
        )
    for rows, length in sizes:
        if reason := _too_large(rows * length, device):
            report.not_run.append(f"times at {(rows, length)}, because {reason}")
            continue
        rollouts = make_rollouts(rows, length, turns=TURNS).to(device)
        calls: dict[str, Callable[[], Any]] = {
            grpo_name: lambda: grpo(rollouts.rewards, rollouts.mask, rollouts.index)  # noqa: B023 used in this round
        }
        for name in measurable(Report({})):
            calls[name] = lambda name=name: call(name, rollouts, {})  # noqa: B023
        seconds = measure.median_seconds(calls, device, repeats)
        table = [f"\n(B, T) = {(rows, length)}, up to {TURNS} turns, groups of {GROUP}, median of {repeats}"]
        for name, function in calls.items():
            must = _must_move(name, function()) * rows * length
            copy = measure.copy_seconds(must, device, repeats)
            peak = measure.peak_bytes(function, device) / (FLOAT * rows * length)
            row = {"size": [rows, length], "name": name, "seconds": seconds[name], "copy_seconds": copy}
            row |= {"grpo": seconds[name] / seconds[grpo_name], "bytes": must, "peak_tensors": peak}
            report.times.append(row)
            table.append(
                f"  {name:20s} {1e3 * seconds[name]:9.2f} ms  {row['grpo']:6.2f} x {grpo_name}  "
                f"{seconds[name] / copy:6.1f} x a copy of its bytes  peak {peak:4.1f} tensors of (B, T)"
            )
        print(*table, sep="\n")


def _must_move(name: str, result: tuple[Tensor, Tensor]) -> int:
    """Return the bytes per token that have to be read or written at least once: mask, rewards, fields, results."""
    fields = len(ESTIMATORS[name].fields) if name in ESTIMATORS else 0
    returned = 1 if result[0] is result[1] else 2
    return MASK + FLOAT * (1 + fields + returned)


def _too_large(tokens: int, device: str) -> str:
    needed = 60 * tokens  # inputs 16 bytes a token, about ten tensors of float32 beside them, and the copy
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else _free_on_host()
    return f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free" if needed > free else ""


def _free_on_host() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def run(report: Report, device: str, *, repeats: int, sizes: tuple[tuple[int, int], ...]) -> None:
    """Run both halves of the first part."""
    check_agreement(report, device)
    check_times(report, device, sizes, repeats)


def head(report: Report) -> str:
    return ", ".join(f"{name} {value}" for name, value in report.machine.items())


def finish(report: Report, out: Path | None, name: str) -> int:
    """Print what was not run and what failed, and return the exit code."""
    if out:
        report.write(out, name)
        print(f"\nwritten to {out / name}")
    print()
    for line in report.not_run:
        print(f"not run: {line}")
    for line in report.failed:
        print(f"FAILED: {line}")
    print("failed" if report.failed else "everything that ran holds")
    return 1 if report.failed else 0


def new_report(args: argparse.Namespace) -> Report:
    """Return an empty report about this machine."""
    about = machine.describe(args.device)
    return Report({**about, **({"commit": args.commit} if args.commit else {})})


def main() -> int:
    """Run the first part alone; return exit code 2 if there is no GPU."""
    args = make_parser(__doc__).parse_args()
    if machine.say_what_is_missing(args.device):
        return 2
    report = new_report(args)
    print(head(report), end="\n\n")
    run(report, args.device, repeats=args.repeats, sizes=parse_sizes(args.sizes))
    return finish(report, args.out, "estimators.json")


if __name__ == "__main__":
    sys.exit(main())
