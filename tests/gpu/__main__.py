"""Run the whole kit in one command, on a machine with one NVIDIA GPU.

    make test-gpu                      # or: python -m tests.gpu
    make test-gpu DEVICE=cpu           # everything that needs no GPU

Exit code 0: all that ran holds; lines "not run: ..." say what did not and why. 1: something failed. 2: there is no GPU
to be used here; the message says what is missing.
"""

from __future__ import annotations

import sys
import traceback

from tests.gpu import machine
from tests.gpu.arguments import make_parser, parse_sizes

PARTS = ("estimators", "verl")


def main() -> int:
    """Run the requested parts."""
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--steps", type=int, default=10, help="of each of verl's two runs")
    parser.add_argument("--server", choices=("vllm", "hf"), help="what generates; by default vllm if it is installed")
    parser.add_argument(
        "--tokenizer", help="folder of a real tokenizer, or `made`; by default ../shared/data's on a GPU"
    )
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds that each of verl's runs may take")
    args = parser.parse_args()
    if machine.say_what_is_missing(args.device):
        return 2
    from tests.gpu import estimators, verl_runs  # they need torch

    report = estimators.new_report(args)
    print(estimators.head(report), end="\n\n")

    def first() -> None:
        estimators.run(report, args.device, repeats=args.repeats, sizes=parse_sizes(args.sizes))

    def second() -> None:
        server = verl_runs.choose_server(report, args.device, args.server)
        tokenizer = verl_runs.choose_tokenizer(report, args.device, args.tokenizer)
        settings = verl_runs.Settings(args.device, server, args.steps, tokenizer, args.timeout, logs=args.out)
        verl_runs.run(report, settings)

    for name, part in zip(PARTS, (first, second), strict=True):
        if name not in args.parts:
            report.not_run.append(f"the part {name}, because --parts leaves it out")
            continue
        try:
            part()
        except Exception as error:  # the other part is worth having all the same
            traceback.print_exc()
            report.failed.append(f"the part {name} broke off: {type(error).__name__}: {error}")
    return estimators.finish(report, args.out, "gpu.json")


if __name__ == "__main__":
    sys.exit(main())
