"""Find the parts of verl that this package really uses, in its own source; they are compared with the tables.

This finds imports, attributes and calls of imported names, attributes of variables and parameters annotated with a
class of verl, members of verl's classes that our subclasses override, read or call, and modules named in texts
(:mod:`.used_keys` finds config keys). It does not find attributes of values without an annotated type, and verl's words
(columns, tags, names of actors); the tables list those by hand.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tests.integration.canary.source import (
    Function,
    Module,
    Parameters,
    Sources,
    own_fields,
    own_members,
    parameters_of,
    shape,
    walk,
)

OURS = "verl_mtgrpo"
THEIRS = ("verl", "transfer_queue")
NOT_VERLS = {
    "verl.plugins": "the name of a group of entry points",
    "verl.tools.schemas:OpenAIFunctionToolSchema.model_validate": "pydantic's",
    "verl.experimental.reward_loop:RewardLoopWorker.remote": "Ray's",
    "verl.experimental.agent_loop.agent_loop:AgentLoopOutput.model_post_init": "pydantic's",
    "verl.experimental.agent_loop.agent_loop:AgentLoopOutput.model_fields_set": "pydantic's",
}
"""Names that look like verl's but are not."""
_MODULE = re.compile(r"(verl(?:\.[a-z_0-9]+)+)(?::(\w+))?")


@dataclass(frozen=True)
class Call:
    """A call of something in verl: the number of positional arguments, and the names of the others."""

    positional: int
    named: frozenset[str]
    at: str


@dataclass
class Subclass:
    """A class of ours that extends one of verl's.

    Attributes:
        name: Our class.
        base: verl's class.
        methods: Members that ours and our mixins define: parameters of functions, None for anything else.
        reads: Attributes of ``self`` that are read or called.
        assigned: Attributes of ``self`` that our methods assign.
    """

    name: str
    base: str
    methods: dict[str, Parameters | None]
    reads: set[str]
    assigned: set[str]


@dataclass
class Used:
    """Everything that was found."""

    names: dict[str, str] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    attributes: dict[str, str] = field(default_factory=dict)


class Reader:
    """Reads the package."""

    def __init__(self, sources: Sources):
        self.sources = sources
        self.modules = [module for name in sources.names(OURS) if (module := sources.module(name))]

    @cached_property
    def used(self) -> Used:
        used = Used()
        for module in self.modules:
            self._names(module, used)
            self._typed(module, used)
        return used

    @cached_property
    def subclasses(self) -> list[Subclass]:
        """Return our classes that extend classes of verl."""
        classes = [(node, module) for module in self.modules for node in walk(module.tree, ast.ClassDef)]
        return [found for node, module in classes for found in self._subclasses(node, module)]

    # ---- names, and calls of what is imported

    def _names(self, module: Module, used: Used) -> None:
        for source, original in module.imported.values():
            if source.partition(".")[0] in THEIRS and original:
                where = f"{source}:{original}"
                used.names[self._as_module(where) or where] = _at(module)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and (where := self._of_verls(node.func, module)):
                named = frozenset(one.arg for one in node.keywords if one.arg)
                used.calls[where].append(Call(len(_plain(node.args)), named, _at(module, node)))
            if isinstance(node, ast.Attribute) and (where := self._of_verls(node, module)):
                used.names[where] = _at(module, node)
            if isinstance(node, ast.Tuple | ast.Dict):
                self._pairs(node, module, used)
        for text in module.words:
            if found := _MODULE.fullmatch(text):
                used.names.setdefault(":".join(filter(None, found.groups())), _at(module))

    def _of_verls(self, node: ast.AST, module: Module) -> str | None:
        """Return ``module:Name`` or ``module:Name.attribute`` for an expression that names something in verl."""
        if isinstance(node, ast.Name):
            source, original = module.imported.get(node.id, ("", ""))
            return f"{source}:{original}" if source.partition(".")[0] in THEIRS and original else None
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Call):  # importlib.import_module("verl.x").NAME
            given = node.value.args[0] if node.value.args else None
            text = given.value if isinstance(given, ast.Constant) else None
            return f"{text}:{node.attr}" if isinstance(text, str) and text.startswith("verl.") else None
        if isinstance(node.value, ast.Name):
            source, original = module.imported.get(node.value.id, ("", ""))
            if source.partition(".")[0] not in THEIRS:
                return None
            if not original:  # import verl.trainer, import transfer_queue as tq
                return None if self.sources.module(f"{source}.{node.attr}") else f"{source}:{node.attr}"
            inner = self._as_module(f"{source}:{original}")
            return f"{inner}:{node.attr}" if inner else f"{source}:{original}.{node.attr}"
        return None

    def _as_module(self, where: str) -> str | None:
        dotted = where.replace(":", ".")
        return dotted if self.sources.module(dotted) else None

    def _pairs(self, node: ast.Tuple | ast.Dict, module: Module, used: Used) -> None:
        """Find ("module", "NAME"), as for a registry, and {"module": function}, as for a hook that gets the module."""
        if isinstance(node, ast.Tuple):
            texts = [one.value for one in node.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if len(texts) == len(node.elts) == 2 and _MODULE.fullmatch(texts[0]) and not texts[1].startswith("verl"):
                used.names[f"{texts[0]}:{texts[1]}"] = _at(module, node)
            return
        for key, value in zip(node.keys, node.values, strict=True):
            text = key.value if isinstance(key, ast.Constant) else None
            if not isinstance(text, str) or not text.startswith("verl.") or not isinstance(value, ast.Name):
                continue
            hook = module.defined.get(value.id)
            given = hook.args.args[0].arg if isinstance(hook, Function) else ""
            for one in walk(hook, ast.Attribute) if hook else ():
                if isinstance(one.value, ast.Name) and one.value.id == given:
                    used.names[f"{text}:{one.attr}"] = _at(module, one)

    # ---- attributes of values annotated with a class of verl, or created by calling one

    def _typed(self, module: Module, used: Used) -> None:
        for scope in (*walk(module.tree, ast.FunctionDef), *walk(module.tree, ast.AsyncFunctionDef)):
            types = {one.arg: self._type(one.annotation, module) for one in ast.walk(scope) if isinstance(one, ast.arg)}
            for node in walk(scope, ast.Assign):
                if isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
                    types.setdefault(node.targets[0].id, self._type(node.value.func, module))
            self._attributes(scope, {name: kind for name, kind in types.items() if kind}, module, used)
        for node in walk(module.tree, ast.ClassDef):
            types = {
                ast.unparse(one.target): kind
                for one in walk(node, ast.AnnAssign)
                if isinstance(one.target, ast.Attribute) and (kind := self._type(one.annotation, module))
            }
            self._attributes(node, types, module, used)

    def _type(self, annotation: ast.AST | None, module: Module) -> str | None:
        for node in ast.walk(annotation) if annotation else ():
            where = self._of_verls(node, module) if isinstance(node, ast.Name) else None
            if where and isinstance(self.sources.find(where), ast.ClassDef):
                return where
        return None

    def _attributes(self, scope: ast.AST, types: dict[str, str], module: Module, used: Used) -> None:
        for node in walk(scope, ast.Attribute):
            if (kind := types.get(ast.unparse(node.value))) and not node.attr.startswith("_mtgrpo"):
                used.attributes[f"{kind}.{node.attr}"] = _at(module, node)

    # ---- subclasses

    def _subclasses(self, node: ast.ClassDef, module: Module) -> Iterator[Subclass]:
        lineage = self.sources.ancestors(f"{module.name}:{node.name}")
        ours = [one for one in lineage if one[1].name.startswith(f"{OURS}.")]
        # verl's classes that ours have as bases
        bases = {
            where
            for one, its in ours
            for base in one.bases
            if (where := self._of_verls(base, its)) and isinstance(self.sources.find(where), ast.ClassDef)
        }
        for base in sorted(bases):
            methods: dict[str, Parameters | None] = {}
            assigned, reads = set[str](), set[str]()
            for one, _ in ours:
                for name, member in own_members(one).items():
                    if isinstance(member, ast.Attribute):
                        assigned.add(name)
                    else:
                        plain = isinstance(member, Function) and shape(member) != "property"
                        found = parameters_of(member, method=True) if plain else None
                        methods.setdefault(name, found)
                for used in walk(one, ast.Attribute):
                    if isinstance(used.ctx, ast.Load) and ast.unparse(used.value) in ("self", "super()"):
                        reads.add(used.attr)
                assigned |= set(own_fields(one))
            yield Subclass(f"{module.name}:{node.name}", base, methods, reads, assigned)


def _plain(given: list[ast.expr]) -> list[ast.expr]:
    return [one for one in given if not isinstance(one, ast.Starred)]


def _at(module: Module, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
    return f"{'/'.join(module.file.parts[-1 - module.name.count('.') - (module.file.name == '__init__.py') :])}{line}"
