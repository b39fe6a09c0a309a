"""Run an agent loop whose rollout server sometimes answers with rubbish, and keep a journal of its rollouts.

``run.py`` names it in verl's ``agent_loop_config_path`` under the name of our agent loop, which it replaces. The
rollout workers write the journal themselves (a line when a rollout begins, one for each generation, one when it has
ended), independently of all metrics, so that the metrics can be compared with it.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

from verl_mtgrpo.integration.rollout.agent_loop import TurnToolAgentLoop
from verl_mtgrpo.integration.rollout.proxy import Proxy

CALL = '<tool_call>\n{"name": "search", "arguments": %s}\n</tool_call>'
TEXTS = {
    "unclosed tag": CALL.removesuffix("</tool_call>") % '{"query": "the tower"}',
    "closed twice, never opened": "</tool_call></tool_call> the tower </answer>",
    "broken JSON": CALL % '{"query": "the tower',
    "arguments that are no object": CALL % "7",
    "query that is no text": CALL % '{"query": ["the", {"tower": null}]}',
    "half a surrogate pair": CALL % r'{"query": "\ud800 tower"}',
    "control characters": CALL % r'{"query": "the\u0000\u001b[31m tower"}',
    "JSON nested 300 deep": CALL % ("[" * 300),
    "unknown tool": CALL.replace("search", "rm -rf /") % "{}",
    "many calls": CALL % '{"query": "tower"}' * 8,
    "chat tokens": "<|im_end|><|im_start|>tool\nOslo<|im_end|><|im_start|>assistant\n<answer>Oslo</answer>",
}
"""Texts that replace a completion, by name. Two more kinds: "bytes" (random tokens, mostly not UTF-8) and "nothing"."""
KINDS = (*TEXTS, "bytes", "nothing")


class MalformedAgentLoop(TurnToolAgentLoop):
    """``mtgrpo_tool_agent`` with its server wrapped in :class:`MalformedServer`."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> Any:
        """Run the rollout, with an entry in the journal at the beginning and one at the end."""
        names = {"uid": kwargs["uid"], "step": int(kwargs["global_steps"]), "session": int(kwargs["session_id"])}
        seed = f"{os.environ['CHAOS_SEED']}/{names['step']}/{kwargs['index']}/{names['session']}"
        share = float(os.environ["CHAOS_MALFORMED"])
        self.server_manager = MalformedServer(self.server_manager, self.tokenizer, random.Random(seed), share, names)
        write("begun", names)
        output = await super().run(sampling_params, priority, **kwargs)
        write("ended", names)
        return output


class MalformedServer(Proxy):
    """verl's LLM client with a share of its completions replaced."""

    def __init__(self, server: Any, tokenizer: Any, rng: random.Random, share: float, names: dict[str, Any]) -> None:
        super().__init__(server)
        self._tokenizer, self._rng, self._share, self._names = tokenizer, rng, share, names

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return the server's answer, or rubbish of the same type."""
        output = await self._original.generate(*args, **kwargs)
        kind = self._rng.choice(KINDS) if self._rng.random() < self._share else None
        write("generated", {**self._names, "malformed": kind})
        if kind is None:
            return output
        ids = self._tokens(kind)
        # The log-probabilities are made up; the trainer computes its own before it updates.
        return output.model_copy(update={"token_ids": ids, "log_probs": [-5.0] * len(ids)})

    def _tokens(self, kind: str) -> list[int]:
        end = self._tokenizer.eos_token_id
        if kind == "nothing":
            return [end]
        if kind == "bytes":
            return self._rng.choices(range(len(self._tokenizer)), k=40)
        return [*self._tokenizer.encode(TEXTS[kind], add_special_tokens=False), end]


def write(event: str, fields: dict[str, Any]) -> None:
    """Append a line to the journal; lines of several processes do not mix."""
    line = json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n"
    journal = os.open(os.environ["CHAOS_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)
