"""Show the credit of dumped rollouts, as a page or on the terminal."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.report.catalog import Catalog
from verl_mtgrpo.report.metrics import RunMetrics

if TYPE_CHECKING:
    from verl_mtgrpo.report.against import Run


def write_report(out: Path, catalog: Catalog, *, title: str, made_by: str, metrics: RunMetrics | None = None) -> None:
    """Write the page, with a progress bar on the terminal."""
    from verl_mtgrpo.bars import with_progress
    from verl_mtgrpo.report.html import write_page

    counted = partial(with_progress, progress=True, label="writing", unit="groups", total=len(catalog.groups))
    write_page(out, catalog, title=title, made_by=made_by, metrics=metrics, on_group=counted)


def write_against(out: Path, runs: tuple[Run, Run], *, title: str, made_by: str) -> None:
    """Write the page of two runs side by side, with a progress bar on the terminal."""
    from verl_mtgrpo.bars import with_progress
    from verl_mtgrpo.report.against import write_comparison

    total = sum(len(run.catalog.groups) for run in runs)
    counted = partial(with_progress, progress=True, label="writing", unit="groups", total=total)
    write_comparison(out, runs, title=title, made_by=made_by, on_group=counted)


def print_credit(catalog: Catalog, *, rollouts: int, overview: bool) -> None:
    """Print the rollouts that show best how credit works, after an overview if ``overview``.

    Raises:
        ConfigError: rich is not installed.
    """
    if not importlib.util.find_spec("rich"):
        raise ConfigError(
            "printing rollouts needs the package rich, which is not installed",
            fix='pip install "verl-mtgrpo[report]"; mtgrpo report without --rich writes a page instead',
        )
    from rich.console import Console

    from verl_mtgrpo.report.terminal import print_catalog, print_rollouts

    # rich's highlighting would colour every number, but here colour has a meaning; a file has no width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    if overview:
        print_catalog(catalog, console)
    print_rollouts(catalog, rollouts, console)
