"""Start fresh Pythons, for tests of the import of verl or of this package.

A new interpreter spends six seconds on torch, transformers and Ray before verl begins. So one interpreter (``python -m
tests.fresh``) loads them once and forks: a child has third-party libraries, but nothing of verl, of this package, or of
Hydra and OmegaConf, which our hooks wait for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = [
    "torch", "tensordict", "transformers", "transformers.utils.chat_template_utils", "ray", "ray.util.state", "ray.dag",
    "datasets", "pandas", "peft", "accelerate", "aiohttp", "fastapi", "uvicorn", "watchfiles", "zmq", "msgspec",
    "antlr4", "cachetools", "codetiming",
]  # fmt: skip
HOOKED = ("verl", "verl_mtgrpo", "hydra", "omegaconf")


def python(code: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process.

    Args:
        code: Code of the main module.
        env: Its whole environment; folders of PYTHONPATH come first, and a sitecustomize.py there is imported.
    """
    sys.audit("tests.process")  # tests/costs.py: also where another test has paid for it
    process = _zygote()
    assert process.stdin and process.stdout
    with tempfile.TemporaryDirectory(prefix="fresh") as folder:
        order = {"code": code, "env": dict(os.environ if env is None else env), "folder": folder, "cwd": os.getcwd()}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the process that forks has ended"
        out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(["python", "-c", code], int(answer), out, err)


@cache
def _zygote() -> subprocess.Popen[str]:
    """Return the process that forks; it ends when its input closes, at the end of the tests."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    root = str(Path(__file__).parents[1])
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "tests.fresh"], cwd=root, env=env, **pipes)


def _serve() -> None:
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"tests/fresh.py: without {name}", file=sys.stderr)
    loaded = [name for name in sys.modules if name.split(".")[0] in HOOKED]
    assert not loaded, loaded
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(order: dict[str, Any]) -> NoReturn:
    """Turn this child into the requested process."""
    code = 1
    try:
        for name, number in (("out", 1), ("err", 2)):
            file = os.open(os.path.join(order["folder"], name), os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        sys.argv, sys.path[:0] = ["-c"], ["", *filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))]
        importlib.invalidate_caches()
        sys.modules.pop("sitecustomize", None)
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("sitecustomize")
        exec(compile(order["code"], "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
