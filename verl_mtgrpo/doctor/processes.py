"""Check whether verl knows our names in a fresh process and a Ray worker, and compare the nodes of a cluster."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.installed import installed
from verl_mtgrpo.launch.command import private_ray
from verl_mtgrpo.launch.failure import root_error
from verl_mtgrpo.launch.process import run_child

LIMIT_S = 180.0
"""Longest time in seconds for a program; a cold start of Ray on a busy machine takes most of a minute."""
_PROGRAM, _CLUSTER = "verl_mtgrpo.doctor.names", "verl_mtgrpo.doctor.cluster"
_FIX = f"{sys.executable} -c 'import verl_mtgrpo.plugin' shows why; then pip install --upgrade verl-mtgrpo"


def registered(*, with_ray: bool) -> list[Finding]:
    """Check a fresh process and, with ``with_ray``, a worker of a Ray that is started and stopped for this.

    If RAY_ADDRESS names a cluster, its nodes are asked too.
    """
    with tempfile.TemporaryDirectory(prefix="mtgrpo-doctor-") as folder:
        log = Path(folder) / "log.txt"
        try:
            code = _run(log, with_ray=with_ray)
        except TimeoutError:
            message = f"a fresh Python{' with Ray' if with_ray else ''} did not finish within {LIMIT_S:g} s"
            return [Finding("registered", "fail", message, "try --no-ray; is the machine out of memory?")]
        text = log.read_text(encoding="utf-8", errors="replace")
    answer = _answer(text)
    if answer is None:
        message = f"a fresh Python that imports verl ends with exit code {code}: {' '.join(root_error(text))}"
        return [Finding("registered", "fail", message, _FIX)]
    found = [_finding("registered", "a process that imports verl", answer["names"], answer["missing"])]
    if with_ray:
        found.append(_finding("ray", "a Ray worker", answer["names"], answer["missing_in_ray"]))
    return [*found, *cluster()] if with_ray and os.environ.get("RAY_ADDRESS") else found


def cluster() -> list[Finding]:
    """Compare the packages on each node of the cluster at RAY_ADDRESS with those of this environment."""
    where = f"the Ray cluster at {os.environ.get('RAY_ADDRESS')}"
    with tempfile.TemporaryDirectory(prefix="mtgrpo-doctor-") as folder:
        log = Path(folder) / "log.txt"
        try:
            code = run_child(
                [sys.executable, "-m", _CLUSTER], env=dict(os.environ), log=log, on_tick=_stops_when_late()
            )
        except TimeoutError:
            return [
                Finding("cluster", "fail", f"{where} did not answer within {LIMIT_S:g} s", "is it running? ray status")
            ]
        text = log.read_text(encoding="utf-8", errors="replace")
    answer = _answer(text, '{"nodes"')
    if answer is None:
        reason = f"{where} could not be asked (exit code {code}): {' '.join(root_error(text))}"
        return [Finding("cluster", "fail", reason, "is it running, with the Ray and the token of this environment?")]
    return compare_nodes(answer["nodes"])


def compare_nodes(nodes: list[dict[str, Any]]) -> list[Finding]:
    """Return findings about the nodes that :mod:`.cluster` has asked."""
    from verl_mtgrpo.doctor.findings import Finding

    found = []
    for node in nodes:
        where = f"node {node['address']}"
        if "error" in node:
            found.append(
                Finding("cluster", "warn", f"{where} gave no answer: {node['error']}", "see the log of its Ray")
            )
            continue
        for name, there in node["versions"].items():
            here = installed(name)
            if there is None:
                fix = f"install {name}=={here} there, in the environment from which its Ray was started"
                found.append(Finding("cluster", "fail", f"{where} has no {name} (here: {here})", fix))
            elif there != here:
                fix = "install the same version on all nodes: workers exchange objects that both have to understand"
                found.append(Finding("cluster", "warn", f"{where} has {name} {there}, here it is {here}", fix))
    versions = ", ".join(f"{name} {installed(name)}" for name in (nodes[0].get("versions", {}) if nodes else {}))
    return found or [Finding("cluster", "ok", f"{len(nodes)} nodes, all with {versions}")]


def _run(log: Path, *, with_ray: bool) -> int:
    argv = [sys.executable, "-m", _PROGRAM, *(["--ray"] if with_ray else [])]
    with private_ray() if with_ray else nullcontext({}) as ray:
        env = {**os.environ, **ray}
        env.pop("RAY_ADDRESS", None)  # start a private Ray, even if a cluster is running
        return run_child(argv, env=env, log=log, on_tick=_stops_when_late())


def _stops_when_late() -> Callable[[], None]:
    end = time.monotonic() + LIMIT_S

    def stop() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    return stop


def _answer(text: str, begins: str = '{"names"') -> dict[str, Any] | None:
    """Return the last JSON object in the program's output that begins in this way."""
    for line in reversed(text.splitlines()):
        if line.startswith(begins):
            return json.loads(line)
    return None


def _finding(check: str, where: str, names: list[str], missing: list[str]) -> Finding:
    if missing:
        return Finding(check, "fail", f"{where} does not know {', '.join(missing)}", _FIX)
    return Finding(check, "ok", f"{where} knows all {len(names)} names of this package")
