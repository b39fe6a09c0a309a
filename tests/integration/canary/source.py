"""Read the names in Python packages and the parameters of their functions without importing them.

verl's modules import Ray, vLLM or an accelerator's libraries, and a branch of verl may need packages that are not
installed here. The canary needs only the source, so it works on any machine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

Function = ast.FunctionDef | ast.AsyncFunctionDef
EXTERNAL = ast.Pass()
"""Marks a name that a module imports from a package that we do not read."""
T = TypeVar("T", bound=ast.AST)


@dataclass(frozen=True)
class Parameters:
    """The parameters of a function.

    Attributes:
        positional: Names of those that may be passed by position, without ``self`` and ``cls``.
        keyword: Names of those that have to be passed by name.
        required: Names of those without a default.
        rest: True if it takes ``*args``.
        others: True if it takes ``**kwargs``.
    """

    positional: tuple[str, ...]
    keyword: tuple[str, ...]
    required: frozenset[str]
    rest: bool
    others: bool

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.positional, *self.keyword)

    @property
    def written(self) -> list[str]:
        """Return the tables' notation: ``name``, ``name=`` (by name only), ``*`` (``*args``), ``**`` (``**kwargs``)."""
        by_name = [f"{one}=" for one in self.keyword]
        return [*self.positional, *["*"] * self.rest, *by_name, *["**"] * self.others]


class Sources:
    """The source of some packages.

    Args:
        roots: The folder of each package (``{"verl": Path("…/site-packages/verl")}``).
    """

    def __init__(self, roots: Mapping[str, Path]):
        self.roots = dict(roots)
        self._modules: dict[str, Module | None] = {}
        self._lineages: dict[ast.ClassDef, list[tuple[ast.ClassDef, Module]]] = {}
        self._members: dict[ast.ClassDef, dict[str, ast.AST]] = {}

    def module(self, name: str) -> Module | None:
        """Return a module or package; None if there is no such file."""
        if name not in self._modules:
            first, *rest = name.split(".")
            path = self.roots[first].joinpath(*rest) if first in self.roots else None
            files = (path.with_suffix(".py"), path / "__init__.py") if path else ()
            file = next((one for one in files if one.is_file()), None)
            self._modules[name] = _module(name, file, file.stat().st_mtime_ns) if file else None
        return self._modules[name]

    def names(self, package: str) -> list[str]:
        """Return all modules of a package."""
        root = self.roots[package]
        parts = (path.relative_to(root.parent).with_suffix("").parts for path in sorted(root.rglob("*.py")))
        return [".".join(one[:-1] if one[-1] == "__init__" else one) for one in parts]

    def find(self, where: str) -> ast.AST | None:
        """Return the definition of ``module:Name``, ``module:Class.attribute`` or ``module``; None if there is none."""
        name, _, path = where.partition(":")
        module = self.module(name)
        if module is None or not path:
            return module.tree if module else None
        first, _, attribute = path.partition(".")
        found = self._defined(module, first)
        if found is None or not attribute:
            return found and found[0]
        if found[0] is EXTERNAL:
            return EXTERNAL
        return self.members(*found).get(attribute) if isinstance(found[0], ast.ClassDef) else None

    def ancestors(self, where: str) -> list[tuple[ast.ClassDef, Module]]:
        """Return a class and its bases within the packages, the class first."""
        name, _, path = where.partition(":")
        module = self.module(name)
        found = self._defined(module, path) if module else None
        return self._lineage(*found) if found and isinstance(found[0], ast.ClassDef) else []

    def members(self, node: ast.ClassDef, module: Module) -> dict[str, ast.AST]:
        """Return methods, attributes and fields of a class and its bases, also those that methods assign."""
        if node not in self._members:
            found = self._members[node] = {}
            for one, _ in self._lineage(node, module):
                found |= {name: member for name, member in own_members(one).items() if name not in found}
        return self._members[node]

    def parameters(self, where: str) -> Parameters | None:
        """Return the parameters of a function, a method or a class's constructor; None if the source does not tell."""
        node = self.find(where)
        if isinstance(node, Function):
            return parameters_of(node, method="." in where.partition(":")[2])
        if not isinstance(node, ast.ClassDef):
            return None
        lineage = self.ancestors(where)
        made = next((own_members(one)["__init__"] for one, _ in lineage if "__init__" in own_members(one)), None)
        if isinstance(made, Function):
            return parameters_of(made, method=True)
        fields = [name for one, _ in reversed(lineage) for name in own_fields(one)]
        return Parameters(tuple(dict.fromkeys(fields)), (), frozenset(), False, False)

    def _lineage(self, node: ast.ClassDef, module: Module) -> list[tuple[ast.ClassDef, Module]]:
        if node not in self._lineages:
            found = self._lineages[node] = [(node, module)]
            for base in node.bases:
                known = self._defined(module, ast.unparse(base).partition("[")[0])
                if known and isinstance(known[0], ast.ClassDef) and known[0] is not node:
                    found += self._lineage(known[0], known[1])
        return self._lineages[node]

    def _defined(self, module: Module, name: str, depth: int = 0) -> tuple[ast.AST, Module] | None:
        """Return where a name of a module is really defined, following imports."""
        if depth > 12:
            return None
        if name in module.defined:
            return module.defined[name], module
        if name in module.imported:
            source, original = module.imported[name]
            if source.partition(".")[0] not in self.roots:
                return EXTERNAL, module
            below = self.module(f"{source}.{original}" if original else source)
            other = self.module(source)
            found = self._defined(other, original, depth + 1) if other and original else None
            return found or ((below.tree, below) if below else None)
        for source in module.starred:
            other = self.module(source)
            if other and (found := self._defined(other, name, depth + 1)):
                return found
        return None


class Module:
    """The definitions and imports of one module."""

    def __init__(self, name: str, file: Path):
        self.name, self.file = name, file
        self.text = file.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    @cached_property
    def defined(self) -> dict[str, ast.AST]:
        found: dict[str, ast.AST] = {}
        for node in _statements(self.tree.body):
            if isinstance(node, Function | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {one.id: node for target in targets for one in walk(target, ast.Name)}
        return found

    @cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Return the origin of each name imported anywhere in the file: a module, and a name in it or nothing."""
        found: dict[str, tuple[str, str]] = {}
        for node in walk(self.tree, ast.Import):
            for one in node.names:
                found[one.asname or one.name.partition(".")[0]] = (
                    (one.name, "") if one.asname else (one.name.partition(".")[0], "")
                )
        for node in walk(self.tree, ast.ImportFrom):
            found |= {one.asname or one.name: (self._source(node), one.name) for one in node.names if one.name != "*"}
        return found

    @cached_property
    def starred(self) -> list[str]:
        return [self._source(node) for node in walk(self.tree, ast.ImportFrom) if node.names[0].name == "*"]

    @cached_property
    def words(self) -> set[str]:
        """Return texts, attributes, parameters and keyword names in the module, without docstrings and comments."""
        docs = {id(node.value) for node in walk(self.tree, ast.Expr) if isinstance(node.value, ast.Constant)}
        texts = {
            node.value for node in walk(self.tree, ast.Constant) if isinstance(node.value, str) and id(node) not in docs
        }
        texts |= {node.arg for kind in (ast.keyword, ast.arg) for node in walk(self.tree, kind) if node.arg}
        fields = {node.target.id for node in walk(self.tree, ast.AnnAssign) if isinstance(node.target, ast.Name)}
        return texts | fields | {node.attr for node in walk(self.tree, ast.Attribute)}

    def _source(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts if self.file.name == "__init__.py" else parts[:-1]
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, *([node.module] if node.module else [])])


@cache
def _module(name: str, file: Path, changed: int) -> Module:
    """Return a module, which is read again only if its file has changed."""
    return Module(name, file)


def walk(tree: ast.AST, kind: type[T]) -> Iterator[T]:
    """Return the nodes of one kind."""
    return (node for node in ast.walk(tree) if isinstance(node, kind))


@cache
def own_members(node: ast.ClassDef) -> dict[str, ast.AST]:
    """Return the names that the class itself defines, or that its methods assign to ``self`` or ``cls``."""
    found: dict[str, ast.AST] = {}
    for one in _statements(node.body):
        if isinstance(one, Function | ast.ClassDef):
            found[one.name] = one
        elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            found[one.target.id] = one
        elif isinstance(one, ast.Assign):
            found |= {name.id: one for target in one.targets for name in walk(target, ast.Name)}
    for one in walk(node, ast.Attribute):
        if isinstance(one.ctx, ast.Store) and isinstance(one.value, ast.Name) and one.value.id in ("self", "cls"):
            found.setdefault(one.attr, one)
    return found


def shape(node: ast.AST) -> str:
    """Return how a name is used: ``property`` if it is read or set as an attribute, ``async`` if it is awaited."""
    if not isinstance(node, Function):
        return ""
    decorators = [ast.unparse(one) for one in node.decorator_list]
    if any(one.endswith(("property", ".setter")) for one in decorators):
        return "property"
    return "async" if isinstance(node, ast.AsyncFunctionDef) else ""


def own_fields(node: ast.ClassDef) -> list[str]:
    """Return the annotated fields of a dataclass or a pydantic model."""
    return [one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]


def parameters_of(node: Function, *, method: bool) -> Parameters:
    """Return the parameters of a function, without the one to which a method is bound."""
    given = node.args
    positional = [one.arg for one in (*given.posonlyargs, *given.args)]
    without = set(positional[: len(positional) - len(given.defaults)])
    without |= {one.arg for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None}
    static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
    if method and not static and positional[:1] in (["self"], ["cls"], ["mcs"]):
        without.discard(positional.pop(0))
    keyword = tuple(one.arg for one in given.kwonlyargs)
    return Parameters(tuple(positional), keyword, frozenset(without), bool(given.vararg), bool(given.kwarg))


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module or a class, including those under ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            yield from _statements(node.body)
            yield from _statements(getattr(node, "orelse", []))
            yield from _statements(getattr(node, "finalbody", []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
