"""Check that the package never runs or unpickles foreign data or passes it to a shell; test the audit, too."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "verl_mtgrpo").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])

NEVER = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
NEVER |= {f"{module}.{name}" for module in ("pickle", "cloudpickle", "marshal", "dill") for name in ("load", "loads")}
NEVER |= {"joblib.load", "pandas.read_pickle", "pd.read_pickle", "jinja2.Template", "subprocess.getoutput"}
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def dangers(source: str) -> Iterator[str]:
    """Calls that would run what they read, by name and line."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords}
        constant = {arg: value.value for arg, value in given.items() if isinstance(value, ast.Constant)}
        if name in NEVER or constant.get("shell") or constant.get("trust_remote_code"):
            yield f"{node.lineno}: {name}"
        if name in NEEDS and constant.get(NEEDS[name][0]) is not NEEDS[name][1]:
            yield f"{node.lineno}: {name} without {NEEDS[name][0]}={NEEDS[name][1]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    assert list(dangers(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.loads(data)",
        "subprocess.run(text, shell=True)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(dangers(f"def f():\n    return {line}\n"))


VULNERABLE = """
print('{"dependencies": [{"name": "safe", "version": "1", "vulns": []}, {"name": "unknown", "skip_reason": "none"},'
      '{"name": "weak", "version": "2", "vulns": [{"id": "PYSEC-0-0", "fix_versions": ["3"]}]}]}')
raise SystemExit(1)
"""
NO_NETWORK = """
import sys
sys.exit("no route to host")
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("auditor", "code", "said"),
    [
        (VULNERABLE, 1, "audit: weak 2: PYSEC-0-0, fixed in 3"),
        (
            VULNERABLE.replace('{"id": "PYSEC-0-0", "fix_versions": ["3"]}', ""),
            0,
            "audit: 2 packages looked up, 0 known",
        ),
        (NO_NETWORK, 0, "audit: could not run: no route to host"),
    ],
)
def test_what_the_audit_says(auditor, code, said, tmp_path: Path):
    (tmp_path / "pip_audit.py").write_text(auditor)  # stands before the installed one: what an index may answer
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, ROOT / ".ci" / "audit.py"], env=env, capture_output=True, text=True)
    assert (result.returncode, said in result.stdout) == (code, True), result.stdout + result.stderr
