"""Check that a verl has everything that the tables name; return a sentence for each missing thing, and what breaks."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.integration.canary.source import EXTERNAL, Function, Parameters, Sources, shape
from tests.integration.canary.used import OURS, Reader, Subclass

TABLES = Path(__file__).parent / "tables"
_ENTRY = re.compile(
    r"(?:(?P<kind>override|like) )?(?:(?P<shape>async|property) )?(?P<path>[\w.]+)(?:\((?P<given>[^)]*)\))?"
)
_SHAPES = {"async": "is an async function", "property": "is a property", "": "is neither async nor a property"}
_OURS = "a class of this package overrides it"


@dataclass(frozen=True)
class Entry:
    """One line of a table.

    Attributes:
        module: verl's module.
        path: A name in it, or a class and its attribute; empty: the module itself.
        kind: ``override``: a method that a class of ours overrides; ``like``: a function of verl that is called in the
            same way as one of ours; ``word``: a text in the module; empty: a name.
        shape: The expected :func:`.source.shape`: ``async``, ``property`` or empty.
        given: The arguments that we pass or take: ``name`` by position, ``name=`` by name, ``*`` and ``**`` for the
            rest; None if it is not called.
        breaks: The part that breaks without it.
    """

    module: str
    path: str
    kind: str
    shape: str
    given: tuple[str, ...] | None
    breaks: str

    @property
    def where(self) -> str:
        return f"{self.module}:{self.path}" if self.path else self.module

    @property
    def owner(self) -> str:
        """Return the class that a member belongs to."""
        return f"{self.module}:{self.path.partition('.')[0]}"

    @property
    def written(self) -> str:
        """Return the entry as the table writes it."""
        given = "" if self.given is None else f"({', '.join(self.given)})"
        return f"{self.module}: {' '.join(filter(None, (self.kind, self.shape, self.path or 'module')))}{given}"


@cache
def entries() -> list[Entry]:
    """Return all lines of the tables except config keys."""
    found: list[Entry] = []
    for file in sorted(TABLES.glob("*.yaml")):
        if not file.stem.startswith("config"):
            for module, lines in yaml.safe_load(file.read_text(encoding="utf-8")).items():
                found += [_entry(module, line, breaks) for line, breaks in lines.items()]
    return found


@cache
def config_entries() -> dict[str, str]:
    """Return the tables' keys of verl's config, and what breaks without each."""
    found: dict[str, str] = {}
    for file in sorted(TABLES.glob("config*.yaml")):
        found |= yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def _entry(module: str, line: str, breaks: str) -> Entry:
    if line.startswith("word "):
        return Entry(module, line.removeprefix("word ").strip('"'), "word", "", None, breaks)
    match = _ENTRY.fullmatch(line)
    assert match, f"{module}: {line!r} is no line of a table"
    path = "" if line == "module" else match["path"]
    given = None if match["given"] is None else tuple(filter(None, match["given"].replace(" ", "").split(",")))
    return Entry(module, path, match["kind"] or "", match["shape"] or "", given, breaks)


def sources(verl: Path | None = None) -> Sources:
    """This package, TransferQueue and a verl.

    Args:
        verl: The folder ``verl`` of a checkout; None for the verl that Python imports.
    """
    roots = {OURS: _folder(OURS), "transfer_queue": _folder("transfer_queue"), "verl": verl or _folder("verl")}
    return Sources({name: path for name, path in roots.items() if path})


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


# ---- names, calls, overridden methods, words


class Canary:
    """Compares tables with a verl."""

    def __init__(self, read: Sources, lines: list[Entry]):
        self.read, self.lines = read, lines
        self.subclasses = Reader(read).subclasses

    def problems(self) -> list[str]:
        """Return everything that is missing or has changed, and what breaks."""
        found = [f"{what}. {line.breaks}" for line in self.lines for what in self._look(line)]
        return list(dict.fromkeys([*found, *self._unheard_of()]))

    def _look(self, line: Entry) -> Iterator[str]:
        module = self.read.module(line.module)
        if module is None:
            yield f"{line.module} is missing"
        elif line.kind == "word":
            if not any(line.path in text for text in module.words):
                yield f"{line.module} no longer says {line.path!r}"
        elif (node := self.read.find(line.where)) is None:
            yield f"{line.where} is missing"
        elif node is not EXTERNAL:
            yield from self._look_at_shape(line)
            if line.given is not None:
                yield from self._look_at_parameters(line)

    def _look_at_shape(self, line: Entry) -> Iterator[str]:
        method = line.path.partition(".")[2]
        wheres = [f"{one.base}.{method}" for one in self.builders_on(line)] if line.kind == "override" else [line.where]
        for where in wheres:
            if (node := self.read.find(where)) is not None and shape(node) != line.shape:
                yield f"{where} {_SHAPES[shape(node)]}, and the table has {line.written}"

    def _look_at_parameters(self, line: Entry) -> Iterator[str]:
        theirs = self.read.parameters(line.where)
        if theirs is None:
            yield f"{line.where} is no function any more"
        elif line.kind == "":
            yield from _passed(line, theirs)
        elif line.kind == "like":
            yield from _changed(line.where, _parameters(line.given or ()), theirs)
        else:
            for one in self.builders_on(line):
                method = line.path.partition(".")[2]
                theirs = self.read.parameters(f"{one.base}.{method}")
                if theirs is None:
                    yield f"{one.base} has no method {method} any more"
                else:
                    yield from _changed(f"{one.base}.{method}", _parameters(line.given or ()), theirs)

    def builders_on(self, line: Entry) -> list[Subclass]:
        """Return our classes whose base in verl is the class of an entry or a subclass of it."""
        return [one for one in self.subclasses if line.owner in lineage(self.read, one.base)]

    def _unheard_of(self) -> Iterator[str]:
        """Return new things in verl that the tables do not know: abstract methods, and names that hide ours."""
        named = {(sub.name, line.path.partition(".")[2]) for line in self.lines for sub in self._overriding(line)}
        for one in self.subclasses:
            known = self.read.ancestors(one.base)
            for name, node in self.read.members(*known[0]).items() if known else ():
                if name not in one.methods:
                    if isinstance(node, Function) and any("abstract" in ast.unparse(by) for by in node.decorator_list):
                        yield f"{one.base} has an abstract method {name}. {one.name} has none, so it cannot be made"
                elif (one.name, name) not in named:
                    yield (
                        f"{one.base} has {name}, which {one.name} defines for itself. verl's is hidden without anybody "
                        "knowing: give ours another name, or name it in tests/integration/canary/tables"
                    )

    def _overriding(self, line: Entry) -> list[Subclass]:
        return self.builders_on(line) if line.kind == "override" else []


def lineage(read: Sources, where: str) -> list[str]:
    """Return a class and its bases as ``module:Class``, also under the names by which they were imported."""
    return list(dict.fromkeys([where, *(f"{module.name}:{node.name}" for node, module in read.ancestors(where))]))


def expected_override(ours: Parameters | None, theirs: ast.AST, read: Parameters | None) -> tuple[str, ...] | None:
    """Return the parameters that the table should list for an override: ours, without optional ones that verl lacks."""
    if ours is None or read is None or shape(theirs) == "property":
        return None
    required = ours.required
    if theirs.name == "__init__" and ours.others:  # we create it, with arguments that verl's does not take
        required -= set(ours.keyword)
    known = {*read.names, *required, "*", "**"}
    taken = (one.rstrip("=") for one in ours.written)
    return tuple(
        f"{name}=" if name in read.keyword else name for name in taken if name in known or read.others or read.rest
    )


def _passed(line: Entry, theirs: Parameters) -> Iterator[str]:
    given = [one for one in line.given or () if not one.startswith("*")]
    positional = tuple(one for one in given if not one.endswith("="))
    if theirs.positional[: len(positional)] != positional and not (theirs.rest and not theirs.positional):
        yield f"{line.where} is called with ({', '.join(positional)}) by position and takes {_shown(theirs)}"
    lacking = [one[:-1] for one in given if one.endswith("=") and one[:-1] not in theirs.names]
    if lacking and not theirs.others:
        yield f"{line.where} has no parameter {', '.join(lacking)}: it takes {_shown(theirs)}"
    more = sorted(theirs.required - {one.rstrip("=") for one in given})
    if more and "**" not in (line.given or ()):
        yield f"{line.where} asks for {', '.join(more)} too"


def _changed(where: str, ours: Parameters, theirs: Parameters) -> Iterator[str]:
    """Return how a function of ours and verl's function in its place differ."""
    new = [name for name in theirs.names if name not in ours.names and not ours.others and not ours.rest]
    if new:
        yield f"{where} takes {', '.join(new)}, which ours does not"
    gone = [name for name in ours.names if name not in theirs.names]
    if gone and not theirs.others and not theirs.rest:
        yield f"{where} no longer takes {', '.join(gone)}"
    by_name = [name for name in ours.positional if name in theirs.keyword]
    if by_name:
        yield f"{where} takes {', '.join(by_name)} by name only"
    by_position = [name for name in ours.keyword if name in theirs.positional]
    if by_position:
        yield f"{where} takes {', '.join(by_position)} by position too"
    shared = [name for name in ours.positional if name in theirs.positional]
    if shared != [name for name in theirs.positional if name in shared]:
        yield f"{where} takes its parameters in another order: {_shown(theirs)}"


def _parameters(given: tuple[str, ...]) -> Parameters:
    positional = tuple(one for one in given if not one.startswith("*") and not one.endswith("="))
    keyword = tuple(one[:-1] for one in given if one.endswith("="))
    return Parameters(positional, keyword, frozenset(), "*" in given, "**" in given)


def _shown(theirs: Parameters) -> str:
    return f"({', '.join(theirs.written)})"


# ---- the config


def verls_config(verl: Path) -> Any:
    """Return verl's unresolved ``ppo_trainer`` as it is without this package."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(verl.resolve() / "trainer" / "config"), version_base=None):
        return OmegaConf.to_container(compose("ppo_trainer"), resolve=False)


def config_problems(config: Any, read: Sources, keys: Mapping[str, str]) -> list[str]:
    """Return the keys of the tables that verl's config lacks, and what breaks."""
    found: list[str] = []
    for line, breaks in keys.items():
        key, _, module = line.partition(" @ ")
        if module:
            its = read.module(module)
            if its is None or key.removesuffix(".*").rpartition(".")[2] not in its.words:
                found.append(f"{module} no longer reads {key}. {breaks}")
        elif not _has(config, key.removesuffix(".*"), node=key.endswith(".*")):
            found.append(f"verl's config has no {key}. {breaks}")
    return found


def _has(config: Any, key: str, *, node: bool) -> bool:
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return False
        config = config[part]
    return not node or config is None or isinstance(config, Mapping)


def is_named(key: str, keys: Mapping[str, str]) -> bool:
    """Return True if the tables have the key itself, a node above that takes any key, or a key below."""
    plain = [line.partition(" @ ")[0] for line in keys]
    above = [line.removesuffix("*") for line in plain if line.endswith(".*")]
    return key in plain or f"{key}.*" in plain or any(
        key.startswith(one) for one in above
    ) or any(one.startswith(f"{key}.") for one in plain)  # fmt: skip
