"""Find tools that answer a failure in words, without the report by which a call counts as failed.

A tool that raises is a failed call already. One that catches its error and returns a text has answered, as far as
anybody but the model can tell, so such a call is paid like one that worked.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from verl_mtgrpo.init.tools import tool_classes, tool_functions

_SAYS_SO = re.compile(r"\b(error|failed|failure|invalid|exception|not found|cannot|unknown)\b", re.IGNORECASE)


def unreported(path: Path) -> list[str]:
    """Return the tools of a Python file or a tool YAML that seem to fail in words only, by their names.

    A guess from the source, for a warning: the tool, or what it calls in the same file, catches an error without
    raising another one or has a text such as "error: …", and nowhere in them is the key ``"ok"`` of a report. Of a tool
    class of a YAML that is ``execute``; a class whose file is not found is passed over.
    """
    if path.suffix == ".py":
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = _functions(tree.body)
        return [name for name, node in tool_functions(tree) if _fails_in_words(_reached(node, functions))]
    return [name for name, class_name in tool_classes(path) if _class_fails_in_words(class_name, path)]


def _class_fails_in_words(class_name: str, listed_in: Path) -> bool:
    module, _, name = class_name.rpartition(".")
    for file in _sources(module, listed_in):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, SyntaxError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                functions = {**_functions(tree.body), **_functions(node.body)}
                return "execute" in functions and _fails_in_words(_reached(functions["execute"], functions))
    return False


def _sources(module: str, listed_in: Path) -> Iterator[Path]:
    """Yield the files that may be the module: below this folder, beside the YAML or up to three above, on the path."""
    folders = [Path.cwd(), *listed_in.resolve().parents[:4], *map(Path, sys.path)]
    inside = Path(*module.split("."))
    for folder in folders if module else ():
        yield from (one for one in (folder / f"{inside}.py", folder / inside / "__init__.py") if one.is_file())


def _functions(body: list[ast.stmt]) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def _reached(start: ast.AST, functions: Mapping[str, ast.AST]) -> list[ast.AST]:
    """Return a function and those of the file or its class that it calls, and that these call."""
    found, names = [start], set[str]()
    for function in found:
        for node in ast.walk(function):
            name = node.id if isinstance(node, ast.Name) else _of_self(node)
            if name in functions and name not in names:
                names.add(name)
                found.append(functions[name])
    return found


def _of_self(node: ast.AST) -> str:
    """Return the name of a method that is called on self, and nothing otherwise."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return ""


def _fails_in_words(functions: list[ast.AST]) -> bool:
    nodes = [node for function in functions for node in ast.walk(function)]
    unread = {id(text) for function in functions if (text := _docstring(function)) is not None}
    unread |= {id(part) for node in nodes if isinstance(node, ast.Raise) for part in ast.walk(node)}
    texts = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unread
    ]
    named = {node.arg for node in nodes if isinstance(node, ast.keyword)}  # dict(ok=False), ToolReport(ok=False)
    if "ok" in named or "ok" in texts:
        return False
    caught = [node for node in nodes if isinstance(node, ast.ExceptHandler)]
    swallowed = any(not any(isinstance(one, ast.Raise) for one in ast.walk(handler)) for handler in caught)
    return swallowed or any(_SAYS_SO.search(text) for text in texts)


def _docstring(function: ast.AST) -> ast.expr | None:
    first = function.body[0] if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) else None
    return first.value if isinstance(first, ast.Expr) else None
