"""Carry out the steps of the Dockerfile without Docker: in a new folder and a new virtual environment.

    python examples/docker/check.py                        # installs everything anew: several GB, minutes
    python examples/docker/check.py --given SITE_PACKAGES  # what that folder has counts as being in the image

Files are copied and commands run in the Dockerfile's order, with an environment of PATH, HOME and pip's own variables
only. Absolute paths of the image lie below the new folder. Commands of apt-get are printed and left out: they need the
image. With --given the packages of another environment are linked in, all but this one, so that only this package is
installed; that environment is not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = Path(__file__).with_name("Dockerfile")
KNOWN = ("FROM", "ARG", "RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD")
PASSED_ON = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_CERT",
    "PIP_TRUSTED_HOST",
    "PIP_CONFIG_FILE",
)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile as ``(name, rest)``; raise ``ValueError`` for an unknown one."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"the Dockerfile has {name!r}, expected one of {', '.join(KNOWN)}")
        yield name, rest.strip()


class Image:
    """A folder that stands for the image, and a virtual environment that stands for its Python."""

    def __init__(self, folder: Path, given: Path | None) -> None:
        self.folder = folder
        self.here = folder
        self.args: dict[str, str] = {}
        self.left_out: list[str] = []
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        self.bin = folder / "venv" / "bin"
        self.env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.env |= {"PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)}
        self.env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if given is not None:
            self._link(given)

    def _link(self, given: Path) -> None:
        """Make the packages of another environment importable, without this one and without what .pth files do."""
        beside = self.folder / "beside"
        beside.mkdir()
        for entry in given.iterdir():
            if not re.match(r"verl_mtgrpo|__editable__|pip\b|pip-", entry.name) and entry.suffix != ".pth":
                (beside / entry.name).symlink_to(entry)
        own = sysconfig.get_path("purelib", vars={"base": str(self.folder / "venv")})
        (Path(own) / "beside.pth").write_text(str(beside))

    def carry_out(self, name: str, rest: str) -> None:
        """Carry out one instruction; raise ``CalledProcessError`` if a command of it fails."""
        if name == "ARG":
            key, _, value = rest.partition("=")
            self.args[key] = value.strip('"')
        elif name == "WORKDIR":
            self.here = self.folder / rest.lstrip("/")
            self.here.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                self._copy(ROOT / source, self.here / target)
        elif name == "RUN" and rest.startswith("apt-get"):
            self.left_out.append(rest)
        elif name == "RUN":
            subprocess.run(["/bin/sh", "-c", rest], check=True, cwd=self.here, env={**self.env, **self.args})
        elif name in ("ENTRYPOINT", "CMD"):
            words = json.loads(rest)
            if name == "ENTRYPOINT" and shutil.which(words[0], path=self.env["PATH"]) is None:
                raise FileNotFoundError(f"the entry point {words[0]} is not there")

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def main() -> None:
    """Carry out the Dockerfile beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", type=Path, metavar="SITE_PACKAGES", help="packages that the image has already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="docker-check-") as folder:
        image = Image(Path(folder), args.given)
        for name, rest in instructions(DOCKERFILE.read_text(encoding="utf-8")):
            print(name, rest, flush=True)
            image.carry_out(name, rest)
        for command in image.left_out:
            print(f"not carried out: {command}")
    print("done: every other step of the Dockerfile worked")


if __name__ == "__main__":
    main()
