"""Find tools that answer a failure in words, without the report by which a call counts as failed.

A tool that raises is a failed call already. One that catches its error and returns a text has answered, as far as
anybody but the model can tell, so such a call is paid like one that worked.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from verl_mtgrpo.init.tools import tool_functions

_SAYS_SO = re.compile(r"\b(error|failed|failure|invalid|exception|not found|cannot|unknown)\b", re.IGNORECASE)


def unreported(path: Path) -> list[str]:
    """Return the function tools of a Python file that seem to fail in words only, by their names.

    A guess from the source, for a warning: the tool, or a function of the same file that it calls, catches an error
    without raising another one or has a text such as "error: …", and nowhere in them is the key ``"ok"`` of a report.
    """
    if path.suffix != ".py":
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return [name for name, node in tool_functions(tree) if _fails_in_words(_reached(node, functions))]


def _reached(start: ast.AST, functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef]) -> list[ast.AST]:
    """Return a function and those of the file that it calls, and that these call."""
    found, names = [start], set[str]()
    for function in found:
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in names:
                names.add(node.id)
                found.append(functions[node.id])
    return found


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
