"""Roles on a scripted server: what tests of their loop share."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from omegaconf import OmegaConf
from verl.workers.rollout.replica import TokenOutput

from tests.agent_loops import PROMPT, run
from verl_mtgrpo.integration.rollout.roles_loop import RolesAgentLoop

QUESTION = PROMPT[0]["content"]
ROW = {"global_steps": 3, "index": 7, "session_id": 0, "uid": "u"}


class Scripted:
    """Stands where verl's LLM client stands: ``says(text of the prompt, number)`` is what comes back.

    ``number`` counts the requests with that very prompt, so what is said depends on no order of time.
    """

    says: ClassVar = None
    requests: ClassVar[list[dict]] = []

    def __init__(self, seed, tokenizer, script=None):
        self.tokenizer, self.seen = tokenizer, {}
        Scripted.requests = []

    async def generate(self, request_id, prompt_ids, sampling_params, **_):
        text = self.tokenizer.decode(prompt_ids)
        number = self.seen[text] = self.seen.get(text, -1) + 1
        Scripted.requests.append({"id": request_id, "prompt": list(prompt_ids), "text": text, **sampling_params})
        await asyncio.sleep(0)
        said = type(self).says(text, number)
        ids = self.tokenizer.encode(said, add_special_tokens=False)
        ids = [*ids, self.tokenizer.eos_token_id] if said else []
        return TokenOutput(
            token_ids=ids,
            log_probs=[-0.5 - number] * len(ids),
            stop_reason="completed",
            extra_fields={"global_steps": 3},
        )


def play(config, tokenizer, tools, says, roles, *, leaves=1, row=None, **rollout):
    server = type("Server", (Scripted,), {"says": staticmethod(says)})
    whole = config.copy()
    OmegaConf.set_struct(whole, False)
    whole.trainer = {"turn": {"roles": roles}}
    row = {**ROW, "mtgrpo_leaves": leaves, **(row or {})}
    rollout = {"response_length": 400, "prompt_length": 400, **rollout}
    return run(RolesAgentLoop, whole, tokenizer, tools, server=server, row=row, **rollout)


def field(outputs, name):
    return [output.extra_fields[name] for output in outputs]


def rendered(tokenizer, *messages):
    """Return the tokens of a chat with a generation prompt, by the chat template itself."""
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}
