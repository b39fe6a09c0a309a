"""The scripts of recipes/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def build_wiki18(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = folder / "mtgrpo"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m verl_mtgrpo.cli.main "$@"\n')
    command.chmod(0o755)
    return subprocess.run(
        ["bash", str(RECIPES / "wiki18" / "build.sh")],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "MTGRPO": str(command), "PYTHONPATH": os.getcwd(), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
