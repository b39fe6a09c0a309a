"""What the checks of one run share: its config, and what earlier checks have opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.retrieval import Passage

ROLLOUT = "actor_rollout_ref.rollout"
MULTI_TURN = f"{ROLLOUT}.multi_turn"
_ENVIRONMENT = ("working_dir", "py_modules", "pip", "uv", "conda", "image_uri")
"""Keys of Ray's ``runtime_env`` that give workers other files or packages than this process has."""


@dataclass(frozen=True)
class Tool:
    """A tool of the run, not made yet.

    Attributes:
        name: What the model calls it.
        schema: What the chat template shows of it; None if only the tool itself knows.
        config: Its settings in the tool YAML.
        searches: Whether it is our search tool.
    """

    name: str
    schema: Mapping[str, Any] | None
    config: Mapping[str, Any]
    searches: bool


@dataclass
class Setup:
    """One run, and what is known of it so far. Checks run in order; what one cannot find stays empty.

    Attributes:
        config: verl's whole config.
        patience_s: Longest time in seconds to wait for a service; None for as long as the run itself would.
        rows: The first training questions.
        tools: The tools that the agent may call.
        tokenizer: verl's, of the policy.
        builder: verl's builder of token ids for this model.
        found: What the search tool finds for the first questions.
    """

    config: Any
    patience_s: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    tokenizer: Any = None
    builder: Any = None
    found: list[tuple[Tool, list[Passage]]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """The value of a dotted key; None if there is none."""
        return OmegaConf.select(self.config, key)

    @property
    def elsewhere(self) -> bool:
        """Whether the run has processes on other machines or in another environment: they may find what is not here."""
        several = int(self.get("trainer.nnodes") or 1) > 1
        running = os.environ.get("RAY_ADDRESS") or self.get("ray_kwargs.ray_init.address")
        own = self.get("ray_kwargs.ray_init.runtime_env") or {}
        return several or bool(running) or any(own.get(key) for key in _ENVIRONMENT)

    def absent(self, check: str, message: str, fix: str) -> Finding:
        """A finding about something that is not on this machine: no failure if others take part."""
        if not self.elsewhere:
            return Finding(check, "fail", message, fix)
        return Finding(check, "warn", f"{message} (for this process; the run has others)", fix)


def question_of(row: Mapping[str, Any], key: str) -> str:
    """The text of a row's last user message; empty without one."""
    messages = row.get(key)
    said = [m.get("content") for m in messages if m.get("role") == "user"] if isinstance(messages, list) else []
    return said[-1] if said and isinstance(said[-1], str) else ""
