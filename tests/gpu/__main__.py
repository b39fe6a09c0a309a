"""The whole kit in one command, on a machine with one NVIDIA GPU.

    make test-gpu                      # or: python -m tests.gpu
    make test-gpu DEVICE=cpu           # everything that needs no GPU

Exit code 0: all that ran holds; lines "not run: ..." say what did not and why. 1: something failed. 2: there is no GPU
to be used here; the message says what is missing.
"""

from __future__ import annotations

import argparse
import sys

from tests.gpu import estimators, verl_runs

PARTS = ("estimators", "verl")


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    estimators.add_arguments(parser)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--steps", type=int, default=10, help="of each of verl's two runs")
    parser.add_argument("--server", choices=("vllm", "hf"), help="what generates; by default vllm if it is installed")
    parser.add_argument(
        "--tokenizer", help="folder of a real tokenizer, or `made`; by default ../shared/data's on a GPU"
    )
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds that each of verl's runs may take")
    args = parser.parse_args()
    report = estimators.start(args)
    if report is None:
        return 2
    print(estimators.head(report), end="\n\n")
    if "estimators" in args.parts:
        estimators.run(report, args.device, repeats=args.repeats, sizes=estimators.parse_sizes(args.sizes))
    if "verl" in args.parts:
        server = verl_runs.choose_server(report, args.device, args.server)
        tokenizer = verl_runs.choose_tokenizer(report, args.device, args.tokenizer)
        verl_runs.run(report, verl_runs.Settings(args.device, server, args.steps, tokenizer, args.timeout))
    return estimators.finish(report, args.out, "gpu.json")


if __name__ == "__main__":
    sys.exit(main())
