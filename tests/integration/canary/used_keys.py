"""Find the keys of verl's config that this package names in texts, in attribute chains and in its YAML files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.integration.canary.source import Function, Module, Sources, walk

NODES = (
    "actor_rollout_ref",
    "algorithm",
    "critic",
    "data",
    "ray_kwargs",
    "reward",
    "trainer",
    "transfer_queue",
)
"""Nodes of verl's config in which the package reads or sets anything."""
OWN = ("algorithm.turn", "reward.turn", "trainer.turn", "trainer.v1.mtgrpo_separate_async")
"""Keys that the package adds to verl's config."""
_KEY = re.compile(rf"(?<![\w./])(?:{'|'.join(NODES)})(?:\.[A-Za-z_]\w*)+(?![\w(]|\.(?:py|md|json|parquet|log)\b)")
_FILES = re.compile(r"\.(?:py|md|json|jsonl|parquet|log|yaml)$")
_HOLDS_CONFIG = ("config", "self.config", "setup.config", "self._config")
_HOLE = "\0"


def used_keys(sources: Sources, package: str) -> dict[str, str]:
    """Return each key of verl's config that the package names, with one place where it does."""
    found: dict[str, str] = {}
    for name in sources.names(package):
        module = sources.module(name)
        if module is not None:
            for key, at in _KeysOf(module, sources).found():
                found.setdefault(key, at)
    for file in sorted((sources.roots[package] / "config").rglob("*.yaml")):
        for key in _keys_of_yaml(file):
            found.setdefault(key, f"config/{file.parent.name}/{file.name}")
    return {key: at for key, at in sorted(found.items()) if not key.startswith(OWN) and not _FILES.search(key)}


class _KeysOf:
    """Return the keys that one module names."""

    def __init__(self, module: Module, sources: Sources):
        self.module, self.sources = module, sources

    def found(self) -> Iterator[tuple[str, str]]:
        at = self.module.name.replace(".", "/")
        inside = {id(part) for node in walk(self.module.tree, ast.JoinedStr) for part in node.values}
        for node in ast.walk(self.module.tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inside:
                for key in _KEY.finditer(self._text(node)):
                    yield key[0], f"{at}.py:{node.lineno}"
        for scope in (self.module.tree, *walk(self.module.tree, ast.FunctionDef)):
            for key, line in self._chains(scope):
                yield key, f"{at}.py:{line}"

    def _text(self, node: ast.expr) -> str:
        """Return a text with constants filled in and holes for everything else that is not literal."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else ""
        if isinstance(node, ast.FormattedValue):
            return self._text(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._text(part) for part in node.values)
        if isinstance(node, ast.Name):
            return self._constants.get(node.id, _HOLE)
        return _HOLE

    @cached_property
    def _constants(self) -> dict[str, str]:
        """Return the texts of the module's constants, and of those that it imports from this package."""
        found: dict[str, str] = {}
        for name, (source, original) in self.module.imported.items():
            other = self.sources.module(source) if source.startswith("verl_mtgrpo") else None
            if other is not None and other is not self.module and original.isupper():
                found[name] = _KeysOf(other, self.sources)._constants.get(original, _HOLE)
        for node in self.module.tree.body:
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for one, value in pairs:
                    if isinstance(one, ast.Name) and isinstance(value, ast.Constant | ast.JoinedStr):
                        # _text looks up constants that are defined above this one
                        self.__dict__["_constants"] = found
                        found[one.id] = self._text(value)
        return found

    def _chains(self, scope: ast.AST) -> Iterator[tuple[str, int]]:
        """Find ``config.trainer.v1.trainer_mode``, ``trainer.get("resume_mode")``, ``select(algorithm, "gamma")``."""
        names = self._aliases(scope)
        calls = {id(node.func): node for node in walk(scope, ast.Call)}
        for node in walk(scope, ast.Attribute):
            key = self._key(node, names)
            if key is None:
                continue
            if id(node) in calls:
                key, given = key.rpartition(".")[0], calls[id(node)].args
                first = given[0].value if given and isinstance(given[0], ast.Constant) else None
                key = f"{key}.{first}" if node.attr == "get" and isinstance(first, str) else key
            if "." in key:
                yield key, node.lineno
        for node in calls.values():
            text, given = ast.unparse(node.func), node.args
            if text.endswith(("select", "getattr", "_child")) and len(given) > 1 and isinstance(given[1], ast.Constant):
                key = self._key(given[0], names)
                if key:
                    yield f"{key}.{given[1].value}", node.lineno

    def _aliases(self, scope: ast.AST) -> dict[str, str]:
        """Return the names that mean a node: parameters with its name, and variables assigned from a chain."""
        names = {
            one.arg: one.arg
            for one in ast.walk(scope)
            if isinstance(one, ast.arg) and one.arg in NODES and one.arg != "data" and isinstance(scope, Function)
        }
        for node in walk(scope, ast.Assign):
            if isinstance(node.targets[0], ast.Name) and (key := self._key(node.value, names)):
                names[node.targets[0].id] = key
        return names

    def _key(self, node: ast.AST, names: Mapping[str, str]) -> str | None:
        """Return the key that an expression means."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setup.get", "OmegaConf.select"):
            text = self._text(node.args[-1])
            return text if _KEY.fullmatch(text) or text in NODES else None
        if not isinstance(node, ast.Attribute):
            return None
        if ast.unparse(node.value) in _HOLDS_CONFIG:
            return node.attr if node.attr in NODES else None
        inner = self._key(node.value, names)
        return f"{inner}.{node.attr}" if inner else None


def _keys_of_yaml(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    yield from (key for key in flat(tree) if key.partition(".")[0] in NODES)
    for reference in re.findall(r"\$\{([^}]*)\}", text):
        yield from (key[0] for key in _KEY.finditer(reference.replace(":", " ")))


def flat(node: Any, prefix: str = "") -> Iterator[str]:
    """Return the dotted names of the leaves of nested mappings."""
    for key, value in node.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, dotted)
        else:
            yield dotted
