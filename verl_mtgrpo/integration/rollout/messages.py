"""Add a message from outside to a running rollout: its tokens are appended, and nothing is tokenised again."""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.integration.rollout.record import record_of


async def read_message(loop: Any, agent_data: Any, message: dict[str, Any]) -> bool:
    """Append a message to a rollout, mask 0, and return True; False if the response has no room for it.

    Args:
        loop: One of our agent loops.
        agent_data: verl's object for the rollout.
        message: The message, as in a chat.
    """
    before = list(agent_data.messages)
    agent_data.messages.append(message)
    merged, mask, log_probs = await loop.ct_merge_context_msg(
        before,
        agent_data.messages,
        agent_data.prompt_ids,
        agent_data.response_mask,
        agent_data.response_logprobs or None,
    )
    if len(mask) >= loop.response_length:
        record_of(agent_data).end_reason = "response_length"
        return False
    agent_data.prompt_ids, agent_data.response_mask = merged.token_ids, mask
    agent_data.response_logprobs = log_probs or []
    agent_data.user_turns += 1
    return True
