r"""``mtgrpo_tree_agent``: a tree of rollouts for each training prompt.

Each leaf of the tree is one run of :class:`~.agent_loop.TurnToolAgentLoop`, which is changed in two places::

    PENDING             [begin where the leaf begins: at the prompt, or with a copy of a turn's state]
    PROCESSING_TOOLS    [after it: wait until every leaf has completed its turn; the strategy then says what branches]

So a branch has the tokens, masks, log-probs and calls of its parent to the last bit, and everything else, from the cut
of a turn to the end of the response, is the loop's. :mod:`~verl_mtgrpo.integration.growth` decides which states branch,
and the tree is in :mod:`.branches`. The loop returns one output per leaf, each with ``extra_fields["node_path"]``: the
ids of its turns, joined by ``/``.

An error of a leaf (a tool that raises, a request that fails) ends that leaf only: its row is dropped like any rollout
that could not be scored. If no leaf is left, the error is raised, and the prompt has failed.

Only rows that our rollout workers' manager marked (:func:`~verl_mtgrpo.integration.trees.ask_for_trees`) grow trees:
those of training. Validation, and every run without the manager, gets the plain loop.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.tool_agent_loop import AgentData, AgentState

from verl_mtgrpo.integration.growth import STRATEGIES
from verl_mtgrpo.integration.rollout.agent_loop import (
    RawContinuationAgentLoop,
    TurnAgentLoopOutput,
    TurnToolAgentLoop,
)
from verl_mtgrpo.integration.rollout.branches import Leaf, State, Tree, running_leaf
from verl_mtgrpo.integration.rollout.record import record_of
from verl_mtgrpo.integration.trees import BRANCH, LEAVES, RAW_TREE, TREE, branch_settings
from verl_mtgrpo.rewards import FAILED, FAILURE, NODE_PATH, TRANSCRIPT

logger = logging.getLogger(__name__)

_Loop = TurnToolAgentLoop if TYPE_CHECKING else object


class Branching(_Loop):
    """Mixin that makes one of our agent loops grow trees; it comes before the loop in the bases."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> Any:
        """Run one rollout, or all of a tree's if the row asks for leaves."""
        leaves = int(kwargs.get(LEAVES) or 0)
        if not leaves:
            return await super().run(sampling_params, priority=priority, **kwargs)
        settings = branch_settings(self.config)
        question = f"{kwargs.get('global_steps')} {kwargs.get('index')}"
        tree = Tree(STRATEGIES[settings.grow](settings, leaves, question, self.max_assistant_turns or 0))
        tree_id, chain = self._id_of_tree(priority, kwargs), super().run

        async def run_leaf(leaf: Leaf) -> TurnAgentLoopOutput:
            leaf.request_id = f"{tree_id}-{leaf.number}" if self.rollout_config.full_determinism else tree_id
            return await chain(sampling_params, priority=priority, **kwargs)

        await tree.grow(run_leaf)
        return await self._outputs(tree, tree.measures(), run_leaf)

    def _id_of_tree(self, priority: int, row: dict[str, Any]) -> str:
        """Return the id of a tree's requests. With one id for all branches one server has all their prefixes.

        With ``full_determinism`` verl gives the id to the engine, which wants the same in every run, and different
        ones of requests that run at the same time: each leaf has one of its own then.
        """
        if self.rollout_config.full_determinism:
            return f"{self._make_request_id(priority, True)}-{row.get('index')}"  # pyright: ignore[reportAttributeAccessIssue]
        return uuid4().hex

    async def _handle_pending_state(self, agent_data: AgentData, sampling_params: dict[str, Any]) -> AgentState:
        leaf = running_leaf.get()
        if leaf is None:
            return await super()._handle_pending_state(agent_data, sampling_params)  # pyright: ignore[reportAttributeAccessIssue]
        agent_data.request_id = leaf.request_id
        if leaf.start.state is None:
            return await super()._handle_pending_state(agent_data, sampling_params)  # pyright: ignore[reportAttributeAccessIssue]
        leaf.start.state.restore(agent_data, record_of(agent_data))
        return AgentState.GENERATING

    async def _handle_generating_state(
        self, agent_data: AgentData, sampling_params: dict[str, Any], ignore_termination: bool = False
    ) -> AgentState:
        leaf = running_leaf.get()
        if leaf is not None and leaf.error is not None:  # what there was before it failed becomes its row
            record_of(agent_data).end_reason = FAILED
            return AgentState.TERMINATED
        before = len(agent_data.response_mask)
        state = await super()._handle_generating_state(agent_data, sampling_params, ignore_termination)
        if leaf is not None:
            written = agent_data.response_mask[before:]
            leaf.node.tokens = sum(written)
            log_probs = zip(agent_data.response_logprobs[before:], written, strict=False)
            leaf.node.log_probs = [log_prob for log_prob, generated in log_probs if generated]
        return state

    async def _handle_processing_tools_state(self, agent_data: AgentData) -> AgentState:
        state = await super()._handle_processing_tools_state(agent_data)
        leaf = running_leaf.get()
        if leaf is not None and state == AgentState.GENERATING:
            await leaf.wait_for_others(State.of(agent_data, record_of(agent_data)))
        return state

    async def _outputs(self, tree: Tree, measures: dict[str, float], run_leaf: Any) -> list[TurnAgentLoopOutput]:
        """Return an output per leaf, the failed ones first: verl takes a session's last output for its result."""
        failed = [leaf for leaf in tree.leaves if leaf.error is not None]
        if len(failed) == len(tree.leaves):
            raise failed[0].error or AssertionError
        outputs = []
        for leaf in failed:
            logger.error("a branch of a tree of rollouts failed and is dropped", exc_info=leaf.error)
            outputs.append(await self._row_of_failed(leaf, run_leaf))
        outputs += [(leaf, leaf.task.result()) for leaf in tree.leaves if leaf.error is None and leaf.task]
        for number, (leaf, output) in enumerate(outputs):
            turns = len(output.extra_fields[TRANSCRIPT].turns)
            output.extra_fields[NODE_PATH] = "/".join(node.name for node in leaf.node.lineage[:turns])
            output.number_among_outputs(number)
        outputs[0][1].extra_fields[BRANCH] = measures
        return [output for _, output in outputs]

    async def _row_of_failed(self, leaf: Leaf, run_leaf: Any) -> tuple[Leaf, TurnAgentLoopOutput]:
        """Return the rollout of a failed leaf up to the turn that failed, for the books and the dump."""
        error, leaf.start = leaf.error, leaf.node.parent or leaf.start
        leaf.node = leaf.start
        leaf.begin(run_leaf)
        assert leaf.task is not None
        output = await leaf.task
        output.extra_fields[FAILURE] = f"{type(error).__name__}: {error}"
        return leaf, output


class TreeAgentLoop(Branching, TurnToolAgentLoop):
    """``mtgrpo_tool_agent`` that grows trees."""


class RawTreeAgentLoop(Branching, RawContinuationAgentLoop):
    """``mtgrpo_raw_agent`` that grows trees."""


register(TREE)(TreeAgentLoop)
register(RAW_TREE)(RawTreeAgentLoop)
