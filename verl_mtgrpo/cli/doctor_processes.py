"""The part of `mtgrpo doctor` that takes processes of its own: does verl know our names there?"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.cli.command import private_ray
from verl_mtgrpo.cli.process import run_child

if TYPE_CHECKING:
    from verl_mtgrpo.integration.checks.findings import Finding

LIMIT_S = 180.0
"""Longest time in seconds for both; a cold start of Ray on a busy machine takes most of a minute."""
_PROGRAM = "verl_mtgrpo.cli.doctor_names"
_FIX = f"{sys.executable} -c 'import verl_mtgrpo.plugin' shows why; then pip install --upgrade verl-mtgrpo"


def registered(*, with_ray: bool) -> list[Finding]:
    """Look into a fresh process and, in a Ray that is started and ended for it, into a worker."""
    from verl_mtgrpo.integration.checks.findings import Finding

    with tempfile.TemporaryDirectory(prefix="mtgrpo-doctor-") as folder:
        log = Path(folder) / "log.txt"
        try:
            code = _run(log, with_ray=with_ray)
        except TimeoutError:
            message = f"a fresh Python{' with Ray' if with_ray else ''} was not done within {LIMIT_S:g} s"
            return [Finding("registered", "fail", message, "look with --no-ray; is the machine out of memory?")]
        text = log.read_text(encoding="utf-8", errors="replace")
    answer = _answer(text)
    if answer is None:
        from verl_mtgrpo.cli.failure import root_error

        message = f"a fresh Python that imports verl ends with exit code {code}: {' '.join(root_error(text))}"
        return [Finding("registered", "fail", message, _FIX)]
    found = [_finding("registered", "a process that imports verl", answer["names"], answer["missing"])]
    if with_ray:
        found.append(_finding("ray", "a Ray worker", answer["names"], answer["missing_in_ray"]))
    return found


def _run(log: Path, *, with_ray: bool) -> int:
    argv = [sys.executable, "-m", _PROGRAM, *(["--ray"] if with_ray else [])]
    end = time.monotonic() + LIMIT_S

    def stop_when_late() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    with private_ray() if with_ray else nullcontext({}) as ray:
        env = {**os.environ, **ray}
        env.pop("RAY_ADDRESS", None)  # a Ray of its own, whatever runs already
        return run_child(argv, env=env, log=log, on_tick=stop_when_late)


def _answer(text: str) -> dict[str, Any] | None:
    """The JSON object at the end of what the program printed."""
    for line in reversed(text.splitlines()):
        if line.startswith('{"names"'):
            return json.loads(line)
    return None


def _finding(check: str, where: str, names: list[str], missing: list[str]) -> Finding:
    from verl_mtgrpo.integration.checks.findings import Finding

    if missing:
        return Finding(check, "fail", f"{where} does not know {', '.join(missing)}", _FIX)
    return Finding(check, "ok", f"{where} knows all {len(names)} names of this package")
