"""Faults in tools and training metrics that a tester of part 9 found: input, right value, and why."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

pytest.importorskip("verl")

from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY, function_tool

from verl_mtgrpo.errors import ToolError
from verl_mtgrpo.integration.rollout.tool_outcome import ToolOutcome, checked_reward, watch, watched
from verl_mtgrpo.integration.trainer.accounting import rollout_metrics

pytestmark = pytest.mark.imports_verl


@pytest.mark.parametrize(
    ("info", "right"),
    [
        ({"documents": np.array(["a", "b"])}, ToolOutcome()),
        ({"ok": np.array([1, 2]), "repeat": np.array([1, 2]), "error_kind": np.array([1, 2])}, ToolOutcome()),
        ({"outage": np.array([1, 2])}, ToolOutcome()),
        ({"latency_s": 10**400}, ToolOutcome()),
        ({"latency_s": -1.0}, ToolOutcome()),
        ({"ok": None}, ToolOutcome()),
        ({"ok": np.bool_(False)}, ToolOutcome(ok=False, error_kind="tool_error")),
        ({"ok": False, "error_kind": "mine"}, ToolOutcome(ok=False, error_kind="mine")),
    ],
    ids=str,
)
def test_what_holds_something_else_says_nothing(info, right):
    assert ToolOutcome.from_info(info) == right


def called(returned):
    """Return the watch of a function tool that returned this, and whether verl could read the result."""

    @function_tool
    def odd(query: str):
        """Odd.

        Args:
            query: What.
        """
        return returned

    tool = watched(FUNCTION_TOOL_REGISTRY.pop("odd"))

    async def go():
        seen = watch()
        try:
            await tool.call({"query": "q"})
        except (TypeError, ValueError):
            return seen, False
        return seen, True

    return asyncio.run(go())


def test_a_call_that_verl_could_not_read_earns_nothing():
    assert called(("a", 1, {}))[0].reward == 1
    for returned in (("a", 1, [1]), ("a", "b", "c", "d"), ()):  # verl: an error text for the model and reward 0
        seen, read = called(returned)
        assert not read and not seen.answered and checked_reward("odd", seen.reward) == 0.0, returned
    with pytest.raises(ToolError, match="'much'"):  # a reward that is not a number is for the author to fix
        checked_reward("odd", called(("a", "much"))[0].reward)
    with pytest.raises(ToolError):
        checked_reward("odd", 10**400)


def test_numbers_of_numpy_are_numbers_in_training_as_in_validation():
    found = rollout_metrics([{"x": np.float32(1), "y": np.int64(2), "huge": 10**400, "flag": True}, {"x": 3}])
    assert found == {"x": 2.0, "y": 2.0}
    assert math.isfinite(found["x"])
