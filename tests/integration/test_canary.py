"""Check that the verl that Python imports has everything that this package relies on: a canary for verl.

``canary/tables`` lists each attribute, signature, word and config key of verl that the package uses, and what breaks
without it. The tables are compared with verl's source, which is read and not imported, and with the names that the
package really uses (``canary/used.py``, ``canary/used_keys.py``). ``make test-verl-main VERL=PATH`` runs this against
another verl; ``docs/verl-versions.md`` has the results.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("there is no verl to look at", allow_module_level=True)

from tests.integration.canary.look import (
    TABLES,
    Canary,
    Entry,
    config_entries,
    config_problems,
    entries,
    expected_override,
    is_named,
    lineage,
    sources,
    verls_config,
)
from tests.integration.canary.source import Sources, walk
from tests.integration.canary.used import NOT_VERLS, OURS, Reader, Subclass, Used
from tests.integration.canary.used_keys import used_keys
from verl_mtgrpo.installed import TESTED_VERL
from verl_mtgrpo.integration.compat import OVERRIDDEN

pytestmark = pytest.mark.heavy


@cache
def read() -> Sources:
    return sources()


@cache
def used() -> Used:
    return Reader(read()).used


@cache
def subclasses() -> list[Subclass]:
    return Reader(read()).subclasses


def version_of(read: Sources) -> str:
    return (read.roots["verl"] / "version" / "version").read_text().strip()


of_tested_verl = pytest.mark.skipif(version_of(read()) != TESTED_VERL, reason=f"the tables are of verl {TESTED_VERL}")


def said(problems: list[str]) -> str:
    listed = "\n".join(f"- {problem}" for problem in problems)
    return f"verl {version_of(read())} at {read().roots['verl']} is not as this package needs it:\n{listed}"


# ---- the canary: this verl against the tables


def test_verl_has_every_name_signature_and_word():
    problems = Canary(read(), entries()).problems()
    assert not problems, said(problems)


@pytest.mark.compose
def test_verl_has_every_config_key():
    problems = config_problems(verls_config_unchanged(), read(), config_entries())
    assert not problems, said(problems)


# ---- the tables against the package: everything that is used is named


def covering(where: str, kind: str = "") -> list[Entry]:
    """Return the entries for a name; for a member of a class, also those for the class in verl that it comes from."""
    module, _, path = where.partition(":")
    owner, _, member = path.partition(".")
    owners = lineage(read(), f"{module}:{owner}") if member else []
    wheres = {where, *(f"{one}.{member}" for one in owners)}
    return [line for line in entries() if line.where in wheres and (not kind or line.kind == kind)]


@of_tested_verl
def test_every_name_that_is_used_is_named():
    wheres = {line.where for line in entries()}
    classes = {where.rpartition(".")[0] for where in wheres if ":" in where}
    modules = {line.module for line in entries()}
    missing = [
        f"{where} is used at {at} and no table names it"
        for where, at in {**used().names, **used().attributes}.items()
        if where not in NOT_VERLS and where not in wheres | classes | modules and not covering(where)
    ]
    assert not missing, "\n".join(missing)


@of_tested_verl
def test_every_call_is_named_with_what_it_passes():
    wrong = []
    for where, calls in used().calls.items():
        lines = [line for line in covering(where) if line.given is not None and line.kind == ""]
        positional = max(call.positional for call in calls)
        named = set().union(*(call.named for call in calls))
        fits = [
            sum("=" not in one and "*" not in one for one in line.given or ()) == positional
            and {one[:-1] for one in line.given or () if one.endswith("=")} >= named
            for line in lines
        ]
        if where not in NOT_VERLS and not any(fits):
            wrong.append(
                f"{where} is called at {calls[0].at} with {positional} by position and {sorted(named)} by name"
            )
    assert not wrong, "\n".join(wrong)


@of_tested_verl
def test_everything_that_our_classes_override_or_read_is_named():
    wrong = []
    for one in subclasses():
        theirs = read().members(*read().ancestors(one.base)[0])
        for name, ours in one.methods.items():
            if name not in theirs:
                continue
            lines = covering(f"{one.base}.{name}", "override")
            expected = expected_override(ours, theirs[name], read().parameters(f"{one.base}.{name}"))
            if not lines:
                wrong.append(
                    f"{one.name} overrides {one.base}.{name}({', '.join(expected or ())}), and no table names it"
                )
            elif all(line.given != expected for line in lines):
                wrong.append(f"{lines[0].written}: expected ({', '.join(expected or ())}) as in {one.name}")
        for name in one.reads - set(one.methods):
            where = f"{one.base}.{name}"
            if (name in theirs or name not in one.assigned) and where not in NOT_VERLS and not covering(where):
                wrong.append(f"{one.name} reads {where}, and no table names it")
    assert not wrong, "\n".join(wrong)


def test_every_config_key_that_is_used_is_named():
    keys = config_entries()
    missing = [
        f"{key} is used at {at} and no table names it"
        for key, at in used_keys(read(), OURS).items()
        if not is_named(key, keys)
    ]
    assert not missing, "\n".join(missing)


def test_what_is_checked_at_every_start_is_named_too():
    for where, names in OVERRIDDEN.items():
        for name in names:
            known = f"{where}.{name}" in NOT_VERLS or covering(f"{where}.{name}", "override")
            assert known, f"{where}.{name} is in compat.OVERRIDDEN and in no table"


# ---- and the other way round: everything that is named is used


@cache
def our_words() -> frozenset[str]:
    """Return all identifiers and texts of the package."""
    found: set[str] = set()
    for module in Reader(read()).modules:
        found |= module.words | {node.id for node in walk(module.tree, ast.Name)}
        found |= {node.name for kind in (ast.FunctionDef, ast.AsyncFunctionDef) for node in walk(module.tree, kind)}
    return frozenset(found)


def says(word: str) -> bool:
    return any(word in text for text in our_words())


BY_HAND = (
    "__init__",  # attributes of objects that are created elsewhere: workers, the doctor's agent loop
    "initialize_global_process_group_ray",  # looked up in the module by name
    "prompt_ids",  # attributes of the result of verl's run()
    "tool_call_start_token",  # composed of two words
    "tool_call_end_token",
    "tool_schema",  # attributes of the tools in a dict of verl
)
"""Names that are used in a way that :mod:`tests.integration.canary.used` does not see."""


def is_used(line: Entry) -> bool:
    path, _, member = line.path.partition(".")
    if line.kind == "like" or (member or path) in BY_HAND:
        return True
    ours = [one for one in subclasses() if line.owner in lineage(read(), one.base)]
    if line.kind == "override":
        return any(member in one.methods for one in ours)
    if member and line.given is None and line.where not in {*used().attributes, *used().names} and ours:
        return any(member in {*one.reads, *one.assigned, *one.methods} for one in ours)
    if line.kind == "word" or member:
        return says(member or line.path)
    known = [*used().names, *(one.base for one in subclasses()), *OVERRIDDEN]
    return any(where == line.where or where.startswith((f"{line.where}.", f"{line.where}:")) for where in known)


@of_tested_verl
def test_everything_that_is_named_is_used():
    unused = [line.written for line in entries() if not is_used(line)]
    assert not unused, "in a table, and the package does not use it:\n" + "\n".join(unused)


def test_every_config_key_that_is_named_is_used():
    keys = used_keys(read(), OURS)
    unused = [
        key
        for line in config_entries()
        if (key := line.partition(" @ ")[0]) not in keys
        and not (key.endswith(".*") and any(one.startswith(key[:-2]) for one in keys))
        and key.rpartition(".")[2] not in our_words()
    ]
    assert not unused, f"in a table, and the package does not use it: {', '.join(unused)}"


def test_each_line_of_a_table_is_one_sentence_and_there_once():
    lines = [line for file in TABLES.glob("*.yaml") for line in file.read_text().splitlines() if line.strip()]
    modules = [line for line in lines if re.fullmatch(r"[\w.]+:", line)]
    written = [line for line in lines if not line.startswith("#") and line not in modules]
    assert len(written) == len(entries()) + len(config_entries())
    for breaks in [*(line.breaks for line in entries()), *config_entries().values()]:
        assert re.fullmatch(r"[A-Za-z_].*[^.]\.", breaks), breaks


# ---- a canary that cannot die does not warn of anything


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy verl's source, so that things in it can be renamed."""
    folder = tmp_path_factory.mktemp("verl")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*megatron*", "models")
    shutil.copytree(read().roots["verl"], folder / "verl", ignore=ignore)
    return folder / "verl"


@pytest.fixture
def changed(copied: Path) -> Iterator[Callable[[str, str, str], list[str]]]:
    """Change a file of the copy, and return the canary's sentences."""
    kept: dict[Path, str] = {}

    def change(file: str, old: str, new: str) -> list[str]:
        path = copied / file
        text = path.read_text()
        assert re.search(old, text), f"{file} has no {old}"
        kept.setdefault(path, text)
        path.write_text(re.sub(old, new, text))
        found = sources(copied)
        config = verls_config(copied) if file.endswith(".yaml") else verls_config_unchanged()
        return [*Canary(found, entries()).problems(), *config_problems(config, found, config_entries())]

    yield change
    for path, text in kept.items():
        path.write_text(text)


@cache
def verls_config_unchanged() -> Any:
    return verls_config(read().roots["verl"])


LOOPS, V1 = "experimental/agent_loop", "trainer/ppo/v1"


@pytest.mark.compose
@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        # a function
        (
            "utils/tokenizer/tokenizer.py", r"def hf_tokenizer\b", "def load_tokenizer",
            r"verl.utils.tokenizer:hf_tokenizer is missing\. The doctor cannot load",
        ),
        # a method that ours overrides; the example of review finding 20
        (
            f"{V1}/replay_buffer.py", r"\b_wait_for_next_poll\b", "_wait",
            r"ReplayBuffer._wait_for_next_poll is missing\. The guard against stalls and the replacement of dead",
        ),
        # a parameter that verl adds to one: it did so in 0.9.1, with priority
        (
            f"{LOOPS}/tool_agent_loop.py", r"async def _call_tool\(\s*self,", "async def _call_tool(self, rank,",
            r"ToolAgentLoop._call_tool takes rank, which ours does not\. Results, errors and rewards",
        ),
        # a parameter that verl renames
        (
            f"{V1}/trainer_base.py", r"\bsample_uids\b", "uids",
            r"PPOTrainerSync._val_metrics_update no longer takes sample_uids\. Validation with several",
        ),
        # an argument that we pass by name
        (
            "workers/rollout/replica.py", r"\bstop_reason\b", "finish_reason",
            r"TokenOutput has no parameter stop_reason: it takes .*finish_reason.*\. The CPU rollout server",
        ),
        # an argument that we pass by position
        (
            "utils/config.py", r"use_reference_policy: bool,\s*use_critic: bool,", "use_critic, use_reference_policy,",
            r"validate_config is called with \(config, use_reference_policy, use_critic\) by position and takes",
        ),
        # one that may no longer be passed by position, and one of a method that ours overrides
        (
            "utils/config.py", r"use_reference_policy: bool,", "*, use_reference_policy: bool,",
            r"validate_config is called with \(config, use_reference_policy, use_critic\) by position and takes "
            r"\(config, use_reference_policy=, use_critic=",
        ),
        (
            f"{V1}/trainer_base.py", r"(def _val_metrics_update\(\s*self,\s*data_sources,)", r"\1 *,",
            r"PPOTrainerSync._val_metrics_update takes sample_uids, .* by name only\. Validation with several",
        ),
        # a function that is async now, a method that no longer is, an attribute that is a property
        (
            "utils/tokenizer/tokenizer.py", r"def hf_tokenizer\b", "async def hf_tokenizer",
            r"hf_tokenizer is an async function, and the table has .*hf_tokenizer.*\. The doctor cannot load",
        ),
        (
            f"{LOOPS}/tool_agent_loop.py", r"async def _call_tool", "def _call_tool",
            r"ToolAgentLoop._call_tool is neither async nor a property, and the table has .*override async Tool",
        ),
        (
            f"{V1}/replay_buffer.py", r"(    def _clear_groups)", r"    @property\n    def pending_keys(self): ...\n\1",
            r"ReplayBuffer.pending_keys is a property, and the table has .*\. The guard against stalls does not know",
        ),
        # an attribute that verl's constructor sets
        (
            f"{V1}/replay_buffer.py", r"self\.pending_keys", "self.waiting_keys",
            r"ReplayBuffer.pending_keys is missing\. The guard against stalls does not know",
        ),
        # a class of ours that can no longer be created
        (
            "plugin/platform/platform_base.py", r"(    @abc.abstractmethod\n    def is_available)",
            r"    @abc.abstractmethod\n    def warp_size(self): ...\n\n\1",
            r"PlatformBase has an abstract method warp_size\. verl_mtgrpo.cpu.platform:CpuPlatform has none",
        ),
        # a name of ours that hides a new one of verl's
        (
            f"{V1}/replay_buffer.py", r"(    def _clear_groups)", r"    def _without_lost(self): ...\n\n\1",
            r"ReplayBuffer has _without_lost, which .*TurnReplayBuffer defines for itself",
        ),
        # a word
        (
            f"{V1}/trainer_base.py", r"latest_checkpointed_iteration\.txt", "latest.txt",
            r"trainer_base no longer says 'latest_checkpointed_iteration.txt'\. A run whose last checkpoint is gone",
        ),
        # config keys: in a file of verl's, and read by its code alone
        (
            "trainer/config/ppo_trainer.yaml", r"\bval_only:", "validate_only:",
            r"verl's config has no trainer.val_only\. mtgrpo eval trains\.",
        ),
        (
            "trainer/main_ppo.py", r"agent_loop_manager_class", "manager_class",
            r"main_ppo no longer reads actor_rollout_ref.rollout.agent.agent_loop_manager_class\. Dead workers",
        ),
    ],
)  # fmt: skip
def test_what_verl_renames_is_said_with_what_breaks(file, old, new, says, changed):
    problems = changed(file, old, new)
    assert any(re.search(says, problem) for problem in problems), problems


@pytest.mark.compose
def test_a_module_that_is_gone_is_said(copied, tmp_path):
    """Test verl's branch neo, which has no V1 trainer."""
    neo = tmp_path / "verl"
    shutil.copytree(copied, neo, ignore=shutil.ignore_patterns("v1"))
    problems = Canary(sources(neo), entries()).problems()
    assert any(one.startswith("verl.trainer.ppo.v1 is missing. verl's V1 trainer is gone") for one in problems)


def test_a_use_that_no_table_names_is_found():
    """Remove a line of the tables: the tests above find the name that it listed."""
    for line in entries():
        if line.where == "verl.utils.config:validate_config":
            assert line.where in used().calls
            break
    else:
        pytest.fail("the example is gone: take another one")
    keys = config_entries()
    assert is_named("trainer.val_only", keys)
    assert not is_named("trainer.val_only", {key: value for key, value in keys.items() if key != "trainer.val_only"})
