"""Pack what the run with verl needs on a machine without a network into one file of less than 64 MiB.

    python -m tests.gpu.pack runs/gpu/site.tar.xz      # minutes; needs a package index, pip and Python 3.12's wheels

The wheels of wheels.txt are unpacked for Python 3.12 on Linux (x86-64), less what no training run reads, and packed
by xz, which takes half of what the wheels do. The real tokenizer of ../shared comes along where it is there. On the
other machine: ``python3 -m tarfile -e site.tar.xz /tmp/site`` and ``PYTHONPATH=/tmp/site``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.gpu.assets import REAL_TOKENIZER

WHEELS = Path(__file__).with_name("wheels.txt")
LIMIT = 64 * 2**20
"""Largest size in bytes that may be sent with one command, including the working tree (4 MiB)."""

# Java, a library of other algorithms, the dashboard's page, byte code, scripts of another Python.
UNREAD = ("ray/jars", "ray/rllib", "ray/dashboard/client", "**/__pycache__", "bin")
_TAGS = ("manylinux1", "manylinux2014", *(f"manylinux_2_{n}" for n in (17, 24, 26, 27, 28, 31, 34, 35)))


def unpack(folder: Path) -> None:
    """Install the wheels into ``folder`` without running their code."""
    wheels = folder.with_name("wheels")
    pip = [sys.executable, "-m", "pip"]
    target = ["--no-deps", "--python-version", "3.12", "--implementation", "cp"]
    target += [part for tag in _TAGS for part in ("--platform", f"{tag}_x86_64")]
    listed = [line for line in WHEELS.read_text().splitlines() if line and not line.startswith("#")]
    source = [line for line in listed if line.startswith("antlr4")]  # pure Python, published without a wheel
    binary = [line for line in listed if line not in source]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, *source], check=True)
    subprocess.run([*pip, "download", "-q", *target, "--only-binary=:all:", "-d", wheels, *binary], check=True)
    paths = sorted(map(str, wheels.glob("*.whl")))
    options = ["--no-index", "--no-compile", "--only-binary=:all:", "--target", folder]
    subprocess.run([*pip, "install", "-q", *target, *options, *paths], check=True)
    size = sum(Path(path).stat().st_size for path in paths)
    print(f"{len(paths)} wheels, {size / 2**20:.1f} MiB")


def strip(folder: Path) -> None:
    """Remove files that nothing reads."""
    for pattern in UNREAD:
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path)


def pack(folder: Path, out: Path) -> None:
    """Write ``folder`` as one file, with the real tokenizer as ``tokenizer`` if there is one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w:xz", preset=6) as archive:
        archive.add(folder, ".")
        if REAL_TOKENIZER.exists():
            archive.add(REAL_TOKENIZER, "tokenizer")
    size = out.stat().st_size
    print(f"{out}: {size / 2**20:.1f} MiB of the {LIMIT / 2**20:.0f} that travel with one command")
    if size > LIMIT - 6 * 2**20:
        raise SystemExit("too large to travel beside the working tree")


def main() -> None:
    """Download, unpack, pack."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gpu/site.tar.xz")
    with tempfile.TemporaryDirectory(prefix="mtgrpo-pack-") as name:
        folder = Path(name) / "site"
        unpack(folder)
        strip(folder)
        pack(folder, out)


if __name__ == "__main__":
    main()
