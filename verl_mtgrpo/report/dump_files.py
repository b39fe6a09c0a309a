"""Find the files with a run's dumped rollouts, and the files of given steps."""

from __future__ import annotations

from pathlib import Path

from verl_mtgrpo.errors import ConfigError, DataError

# Where the demo's runs and the documentation keep dumps, below the folder of a run.
RUN_FOLDERS = ("rollouts", "validation")


def step_files(folder: Path) -> dict[int, Path]:
    """Return verl's ``<step>.jsonl`` in a folder, by step."""
    found = {int(path.stem): path for path in folder.glob("*.jsonl") if path.stem.isascii() and path.stem.isdigit()}
    return dict(sorted(found.items()))


def dump_files(target: Path, steps: range | None = None) -> list[Path]:
    """Return the files of a dump: a file itself, the steps of a folder, or those of the dumps in a run's folder.

    Args:
        target: A file, a folder of ``<step>.jsonl``, or a folder with such folders ``rollouts`` or ``validation``.
        steps: Only these steps; None for all.

    Raises:
        DataError: There is no dump, or none of these steps.
    """
    if target.is_file():
        return [target]
    if not target.is_dir():
        raise DataError(
            f"{target} does not exist",
            expected="a dump (<step>.jsonl), a folder of them, or a run's folder",
        )
    folders = [folder for folder in (target, *(target / name for name in RUN_FOLDERS)) if step_files(folder)]
    if not folders:
        raise DataError(
            f"{target} has no <step>.jsonl, and neither does a folder {' or '.join(RUN_FOLDERS)} in it",
            fix=(
                "verl writes them to trainer.rollout_data_dir (every step) and trainer.validation_data_dir (every "
                "validation)"
            ),
        )
    chosen = [path for folder in folders for step, path in step_files(folder).items() if steps is None or step in steps]
    if not chosen:
        there = sorted({step for folder in folders for step in step_files(folder)})
        raise DataError(
            f"{target} has no dump of these steps",
            fix=f"choose from {there[0]} to {there[-1]} ({len(there)} steps)",
        )
    return chosen


def parse_steps(text: str) -> range:
    """Parse ``20`` or ``10:20``, both ends included; an omitted end is open.

    Raises:
        ConfigError: The text is something else.
    """
    first, colon, last = text.partition(":")
    try:
        low = int(first) if first else 0
        high = (int(last) if last else 10**12) if colon else low
    except ValueError:
        low, high = 0, -1
    if not text or low < 0 or high < low:
        raise ConfigError(
            f"--steps {text!r}: expected a step (20) or a range of steps, both included (10:20, 10:, :20)"
        )
    return range(low, high + 1)
