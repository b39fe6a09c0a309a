"""Write your own tool that says how much each call is worth: a calculator.

It uses nothing of this package; it is one of verl's function tools. Its second return value is the call's reward. If
the reward function uses it (``call.reward``, as own_turn_reward.py does), the turn that made the call is paid for it.

    TOOL=actor_rollout_ref.rollout.multi_turn
    mtgrpo train -- $TOOL.function_tool_path=$PWD/examples/extend/own_tool.py \
        reward.turn.preset=$PWD/examples/extend/own_turn_reward.py:evidence ...
"""

import ast
import operator

from verl.tools.function_tool import function_tool
from verl.tools.schemas import ToolResponse

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@function_tool
def calculate(expression: str) -> tuple[ToolResponse, float, dict]:
    """Work out an expression of numbers, + - * / and brackets.

    Args:
        expression: For example (3 + 4) * 2.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
        text = f"{value(tree):g}"
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        # ok: False makes it a failed call, in metrics and rewards; why is for people who read the report.
        report = {"ok": False, "error_kind": "bad_arguments", "why": str(error)}
        return ToolResponse(text=f"Error: {error}"), 0.0, report
    worth = 0.2 if isinstance(tree, ast.BinOp) else 0.0  # a single number is not a calculation
    return ToolResponse(text=text), worth, {"ok": True}


def value(node: ast.AST) -> float:
    """Return the value of a parsed expression; it knows only numbers and four operators, so no code can run."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value(node.left), value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value(node.operand)
    raise ValueError(f"{type(node).__name__} is not arithmetic")
