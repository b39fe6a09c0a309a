"""Measure rollouts by data set, from validation dumps or from a checkpoint: ``mtgrpo eval``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from verl_mtgrpo.checkpoints import PREFIX
from verl_mtgrpo.cli import Subparsers
from verl_mtgrpo.errors import ConfigError, DataError, TrainingFailed
from verl_mtgrpo.launch.checkpoint import MODEL_PATH, find_checkpoint, model_of
from verl_mtgrpo.launch.command import TrainCommand, hydra_value
from verl_mtgrpo.launch.echo import run_and_show
from verl_mtgrpo.launch.failure import failure_report
from verl_mtgrpo.launch.options import check_preset, index_variable
from verl_mtgrpo.launch.provenance import describe_source
from verl_mtgrpo.report.dump_files import step_files

_DESCRIPTION = """\
Measure rollouts by data set, with 95 % bootstrap intervals, next to the paper's numbers: exact match, F1, format,
tool execution, hit rate, searches per question. Where questions have several rollouts, also whether turn rewards and
the outcome agree within them. Writes OUT/eval.md, OUT/eval.csv and OUT/eval.json.

From validation dumps (trainer.validation_data_dir) of runs with this package: a file, or a folder, in which the
last step counts. Several are listed one after the other; eval.md also has the differences of the later ones from the
first. Dumps of training rollouts (trainer.rollout_data_dir, with a trainer mode of this package) are measured
too, and labelled as such.

  mtgrpo eval runs/mine/validation
  mtgrpo eval grpo/validation/500.jsonl mt_grpo/validation/500.jsonl --out runs/eval/grpo-mt_grpo

From a checkpoint of verl, or a Hugging Face model: verl validates (trainer.val_only), then its dump is measured.
What comes after -- goes to verl; you can pass the overrides of the training run.

  mtgrpo eval --checkpoint checkpoints/global_step_500 --index wiki -- data.val_files=test.parquet …
  mtgrpo eval --model Qwen/Qwen2.5-3B-Instruct --index wiki -- data.val_files=test.parquet …

A checkpoint includes its model and tokenizer. verl loads it on top of weights in Hugging Face's format: those in the
checkpoint (checkpoint.save_contents with hf_model), or those of actor_rollout_ref.model.path after --. If there are
none, verl.model_merger first merges the parts of the checkpoint into OUT/model-global_step_N.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "eval",
        help="measure validation dumps, a checkpoint or a model",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", type=Path, metavar="DIR", help="global_step_N of a run, or the folder around it")
    model.add_argument("--model", metavar="DIR", help="model in Hugging Face's format, or its name on the hub")
    parser.add_argument("--out", type=Path, default=Path("runs/eval"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="bootstrap resamples (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    verl = parser.add_argument_group("with --checkpoint or --model, as in mtgrpo train")
    verl.add_argument("--preset", default="mt_grpo", help="config of the group mtgrpo (default: %(default)s)")
    verl.add_argument("--cpu", action="store_true", help="run on this machine's CPU, with a private Ray")
    verl.add_argument("--index", metavar="DIR|URL", help="index of the search tool (default: MTGRPO_INDEX)")
    verl.add_argument("--quiet", action="store_true", help="write verl's output to the log only")
    verl.add_argument("--dry-run", action="store_true", help="print verl's command and stop")
    parser.add_argument(
        "targets", nargs="*", metavar="DUMP", help="dumps; with --checkpoint or --model: -- and verl's overrides"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Find or make the dumps, measure them, write and print the tables."""
    from verl_mtgrpo.report import calibration_tables
    from verl_mtgrpo.report.calibration import calibrate
    from verl_mtgrpo.report.catalog import read_catalog
    from verl_mtgrpo.report.evaluation import Bootstrap, differences, evaluate_dump
    from verl_mtgrpo.report.evaluation_tables import OF_TRAINING, table, to_csv, to_json, to_markdown
    from verl_mtgrpo.report.tables import text_table

    bootstrap = Bootstrap(resamples=args.resamples, seed=args.seed)
    if args.checkpoint or args.model:
        dumps = _validate(args)
        if args.dry_run:
            return 0
    else:
        dumps = find_dumps(args.targets)
    evaluations = [evaluate_dump(dump, label=label, bootstrap=bootstrap) for label, dump in dumps.items()]
    first, *others = evaluations
    changes = {other.label: differences(first, other, bootstrap) for other in others}
    calibrations = {label: calibrate(read_catalog([dump]).groups) for label, dump in dumps.items()}
    source = describe_source()
    args.out.mkdir(parents=True, exist_ok=True)
    written = {
        "eval.md": to_markdown(evaluations, changes, bootstrap, source=source, calibrations=calibrations),
        "eval.csv": to_csv(evaluations),
        "eval.json": to_json(evaluations, changes, bootstrap, source=source, calibrations=calibrations),
    }
    for name, text in written.items():
        (args.out / name).write_text(text, encoding="utf-8")
    for evaluation in evaluations:
        print(f"{evaluation.label}\n\n{text_table(*table(evaluation))}\n")
        if evaluation.training:
            print(f"{OF_TRAINING}\n")
        found = [sentence for one in calibrations[evaluation.label] for sentence in calibration_tables.advice(one)]
        print("\n".join([calibration_tables.TITLE, *(f"- {sentence}" for sentence in found)]) + "\n")
    print(f"{args.out}: {', '.join(written)}")
    return 0


def find_dumps(targets: Sequence[str]) -> dict[str, Path]:
    """Return the dump files by the names that tables use for them.

    Raises:
        ConfigError: No dump is named, or one is named twice.
        DataError: There is no such file, or no dump in the folder.
    """
    if not targets:
        raise ConfigError(
            "there is nothing to measure", fix="name a validation dump or its folder, or give --checkpoint or --model"
        )
    found = [_dump_of(Path(target)) for target in targets]
    if len(set(found)) < len(found):
        raise ConfigError(f"the same dump is named twice: {', '.join(map(str, found))}", fix="name each dump once")
    return {str(dump): dump for dump in found}


def _dump_of(target: Path) -> Path:
    if target.is_file():
        return target
    if not target.is_dir():
        raise DataError(f"{target} does not exist", expected="a validation dump (<step>.jsonl) or a folder of them")
    for folder in (target, target / "validation"):
        if steps := step_files(folder):
            return steps[max(steps)]
    raise DataError(
        f"{target} has no <step>.jsonl",
        fix="verl writes them to trainer.validation_data_dir at every validation",
    )


def _validate(args: argparse.Namespace) -> dict[str, Path]:
    """Have verl validate the checkpoint or the model, and return its dump."""
    check_preset(args.preset, args.targets)
    folder = args.out.resolve() / "validation"
    checkpoint = find_checkpoint(args.checkpoint) if args.checkpoint else None
    step = int(checkpoint.name.removeprefix(PREFIX)) if checkpoint else 0
    model, merge = args.model, None
    if checkpoint:
        model, merge = model_of(checkpoint, args.targets, args.out.resolve())
    command = TrainCommand(
        preset=args.preset,
        cpu=args.cpu,
        overrides=validation_overrides(args.targets, folder=folder, checkpoint=checkpoint, model=model),
        env=index_variable(args.index),
    )
    check_questions(args.targets)
    for one in (merge, command):
        if one:
            print(one.shell_text(), flush=True)
    dump = folder / f"{step}.jsonl"
    if not args.dry_run:
        dump.unlink(missing_ok=True)
        log = args.out / time.strftime("validation-%Y%m%d-%H%M%S.log")
        if merge and (code := run_and_show(merge, log=log, quiet=args.quiet)) != 0:
            raise TrainingFailed(failure_report(code, log, what="merging the checkpoint"))
        if (code := run_and_show(command, log=log, quiet=args.quiet)) != 0:
            raise TrainingFailed(failure_report(code, log, what="validation"))
    return {str(checkpoint or args.model): dump}


def check_questions(overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` if no validation questions are named: verl would read its default, GSM8K's test file.

    Overrides that add a config of the user's own, which may name them, are left alone.
    """
    if not any(one.lstrip("+").startswith("data.val_files=") or _adds_a_config(one) for one in overrides):
        raise ConfigError(
            "there are no validation questions: data.val_files is not set",
            fix="add their file after the options: -- data.val_files=FILE.parquet",
        )


def _adds_a_config(override: str) -> bool:
    return "searchpath" in override or override.startswith(("--config-", "-cn", "-cp"))


def validation_overrides(
    overrides: Sequence[str], *, folder: Path, checkpoint: Path | None, model: Path | str | None
) -> tuple[str, ...]:
    """Put the user's overrides between defaults that they may change and settings that make the run a validation.

    Args:
        overrides: The user's overrides.
        folder: Where verl writes the dump.
        checkpoint: A folder ``global_step_N``.
        model: A model in Hugging Face's format; None for the one in the user's overrides.
    """
    # verl's trainer requires training questions even to validate; the validation questions will do.
    # Nothing is trained, so there is no micro batch size to choose, which verl demands without this.
    defaults = [
        "data.train_files=${data.val_files}",
        "trainer.total_training_steps=1",
        "actor_rollout_ref.actor.use_dynamic_bsz=True",
    ]
    fixed = [
        "trainer.val_only=True",
        "trainer.val_before_train=True",
        f"trainer.validation_data_dir={hydra_value(folder)}",
        f"hydra.run.dir={hydra_value(folder.parent / 'hydra')}",
        # Keep the validation out of the training run's experiment.
        "trainer.logger=[console]",
        # A training command may set this to save disk space; here nothing should be deleted.
        "trainer.del_local_ckpt_after_load=False",
    ]
    if checkpoint:
        fixed += ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={hydra_value(checkpoint)}"]
    else:
        fixed += ["trainer.resume_mode=disable"]
    if model:
        path = Path(model)
        fixed += [f"{MODEL_PATH}={hydra_value(path.resolve() if path.is_dir() else model)}"]
    return (*defaults, *overrides, *fixed)
