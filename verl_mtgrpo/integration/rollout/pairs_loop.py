"""``mtgrpo_pairs_agent``: the policy's own action and an expert's, at the same state.

A row's prompt is a state: the messages of an expert's trajectory up to one of its steps. Its column ``expert`` is what
the expert wrote there. The policy writes one turn of its own, as :class:`~.agent_loop.TurnToolAgentLoop` does with a
limit of one turn, so no tool is called. The loop returns two outputs with the same prompt: first the expert's, whose
tokens all have mask 1 as if the policy had written them, so that verl computes their log-probs too, then the policy's
own. ``extra_fields`` say which is which: ``pair_side`` is ``expert`` or ``own``, and both have one ``pair_id``.

If the policy wrote what the expert did, token for token, its own output is all there is, and its ``pair_side`` is
``equal``: nothing is to be learnt from it.

A row without that column gets the policy's own output alone, as in a validation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import register

from verl_mtgrpo.credit.pairs import EQUAL
from verl_mtgrpo.errors import DataError
from verl_mtgrpo.integration.pairs import EXPERT, PAIR_ID, PAIR_SIDE, PAIRS
from verl_mtgrpo.integration.rollout.agent_loop import TurnAgentLoopOutput, TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.turn_spans import turn_spans
from verl_mtgrpo.rewards import TRANSCRIPT, Turn


class PairsAgentLoop(TurnToolAgentLoop):
    """One turn of the policy beside the expert's; see the module docstring."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_assistant_turns = 1

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> Any:
        """Return the expert's output and the policy's own, or the latter alone."""
        own = await super().run(sampling_params, priority=priority, **kwargs)
        said = kwargs.get(EXPERT)
        if said is None:
            return own
        expert = self._expert(own, said)
        pair = uuid4().hex
        if own.response_ids == expert.response_ids:
            own.extra_fields |= {PAIR_ID: pair, PAIR_SIDE: EQUAL}
            return own
        for number, (side, output) in enumerate((("expert", expert), ("own", own))):
            output.extra_fields |= {PAIR_ID: pair, PAIR_SIDE: side}
            output.number_among_outputs(number)
        return [expert, own]

    def _expert(self, own: TurnAgentLoopOutput, said: Any) -> TurnAgentLoopOutput:
        """Return the policy's output with the expert's text in place of its own."""
        ids = self.tokenizer.encode(said, add_special_tokens=False) if isinstance(said, str) else []
        if not ids:
            raise DataError(f"a row's column {EXPERT} is {said!r}", expected="what the expert wrote, as text")
        if self.ends.token is not None:
            ids = [*ids, self.ends.token]
        if len(ids) > self.response_length:
            raise DataError(
                f"the expert's action has {len(ids)} tokens, and data.max_response_length is {self.response_length}",
                fix="raise data.max_response_length, or leave such rows out",
            )
        output = own.model_copy(deep=False)
        output.response_ids, output.response_mask = ids, [1] * len(ids)
        output.response_logprobs = None if own.response_logprobs is None else [0.0] * len(ids)
        transcript = own.extra_fields[TRANSCRIPT]
        (span,) = turn_spans(output.response_mask)
        turn = Turn(text=said, span=span, tool_calls=())
        output.extra_fields = {
            **own.extra_fields,
            TRANSCRIPT: replace(transcript, turns=(turn,), end_reason="answered"),
        }
        return output


register(PAIRS)(PairsAgentLoop)  # not as a decorator: verl's would hide the class from type checkers
