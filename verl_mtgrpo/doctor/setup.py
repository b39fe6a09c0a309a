"""Share the state of one run between its checks: the config, and the things that it names, opened on first use."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf

from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.retrieval import Passage

ROLLOUT = "actor_rollout_ref.rollout"
MULTI_TURN = f"{ROLLOUT}.multi_turn"
_ENVIRONMENT = ("working_dir", "py_modules", "pip", "uv", "conda", "image_uri")
"""Keys of Ray's ``runtime_env`` that may give workers other files or packages than this process has."""
T = TypeVar("T")


@dataclass(frozen=True)
class Tool:
    """A tool of the run, not created yet.

    Attributes:
        name: The name that the model uses.
        schema: The schema that the chat template shows; None if only the tool itself knows it.
        config: Its settings in the tool YAML.
        searches: True if it is our search tool.
    """

    name: str
    schema: Mapping[str, Any] | None
    config: Mapping[str, Any]
    searches: bool


Found = tuple[Tool, list[Passage]]
"""A search tool, and the passages that it finds for one question."""


@dataclass(frozen=True)
class Policy:
    """The token settings in the model's folder.

    Attributes:
        tokenizer: verl's tokenizer of the policy.
        builder: verl's builder of token ids for this model; None if verl builds its prompts in another way.
    """

    tokenizer: Any = None
    builder: Any = None


@dataclass(frozen=True)
class Opened(Generic[T]):
    """An opened part of the set-up, and the findings from opening it.

    Attributes:
        value: The opened part, or an empty value if it could not be opened.
        findings: The findings from opening it.
        error: The error that ended it early, if any.
    """

    value: T
    findings: tuple[Finding, ...]
    error: Exception | None

    def said(self) -> Iterator[Finding]:
        """Yield the findings again, and raise the error, for the one check that reports them."""
        yield from self.findings
        if self.error is not None:
            raise self.error


def _opened(steps: Generator[Finding, None, T], empty: T) -> Opened[T]:
    """Run a generator that yields findings and returns the opened part."""
    findings: list[Finding] = []
    while True:
        try:
            findings.append(next(steps))
        except StopIteration as end:
            return Opened(end.value, tuple(findings), None)
        except Exception as error:  # the check that reports it raises it again
            return Opened(empty, tuple(findings), error)


@dataclass(frozen=True)
class Setup:
    """One run. Checks may run in any order, because everything is opened on first use, and only once.

    Attributes:
        config: verl's whole config.
        patience_s: Longest time in seconds to wait for a service; None to wait as long as the run itself would.
        starts: True if the run starts here and now; False if it is only looked at.
    """

    config: Any
    patience_s: float | None = None
    starts: bool = False

    @cached_property
    def questions(self) -> Opened[list[dict[str, Any]]]:
        """Read the first training questions; the list is empty if every file has a problem."""
        from verl_mtgrpo.doctor.data import open_questions

        return _opened(open_questions(self), [])

    @cached_property
    def toolbox(self) -> Opened[list[Tool]]:
        """Read the tools that the agent may call."""
        from verl_mtgrpo.doctor.tools import open_tools

        return _opened(open_tools(self), [])

    @cached_property
    def policy(self) -> Opened[Policy]:
        """Load the tokenizer of the policy, with its chat template."""
        from verl_mtgrpo.doctor.tokenizer import open_policy

        return _opened(open_policy(self), Policy())

    @cached_property
    def searches(self) -> Opened[list[Found]]:
        """Search with each search tool for the first training questions."""
        from verl_mtgrpo.doctor.services import open_searches

        return _opened(open_searches(self), [])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the first training questions, as verl reads them."""
        return self.questions.value

    @property
    def tools(self) -> list[Tool]:
        """Return the tools that the agent may call."""
        return self.toolbox.value

    @property
    def tokenizer(self) -> Any:
        """Return verl's tokenizer of the policy; None if it cannot be loaded here."""
        return self.policy.value.tokenizer

    @property
    def builder(self) -> Any:
        """Return verl's builder of token ids for the policy; None if there is none."""
        return self.policy.value.builder

    @property
    def found(self) -> list[Found]:
        """Return the results of each search tool for the first training questions."""
        return self.searches.value

    def get(self, key: str) -> Any:
        """Return the value of a dotted key; None if there is none."""
        return OmegaConf.select(self.config, key)

    @property
    def elsewhere(self) -> bool:
        """Return True if the run has processes on other machines or in other environments, where more may exist."""
        several = int(self.get("trainer.nnodes") or 1) > 1
        running = os.environ.get("RAY_ADDRESS") or self.get("ray_kwargs.ray_init.address")
        own = self.get("ray_kwargs.ray_init.runtime_env") or {}
        return several or bool(running) or any(own.get(key) for key in _ENVIRONMENT)

    def absent(self, check: str, message: str, fix: str) -> Finding:
        """Return a finding about something missing on this machine, only a warning if other machines take part."""
        if not self.elsewhere:
            return Finding(check, "fail", message, fix)
        return Finding(check, "warn", f"{message} (in this process; workers of the run may have other files)", fix)

    def of_machine(self, check: str, message: str, fix: str) -> Finding:
        """Return a finding about the machine that the run starts on, only a warning if that cannot be this one."""
        if self.starts or _on_cpu(self) or has_accelerator():
            return self.absent(check, message, fix)
        return Finding(check, "warn", f"{message} (this machine has no GPU, so the run will start on another one)", fix)


def has_accelerator() -> bool:
    """Return True if torch finds a GPU, or another accelerator, on this machine."""
    import torch

    return bool(getattr(torch, "accelerator", torch.cuda).is_available())  # torch.accelerator: from 2.6 on


def _on_cpu(setup: Setup) -> bool:
    return setup.get("trainer.device") == "cpu" or os.environ.get("VERL_PLATFORM") == "cpu"


def question_of(row: Mapping[str, Any], key: str) -> str:
    """Return the text of a row's last user message; empty without one."""
    messages = row.get(key)
    said = [m.get("content") for m in messages if m.get("role") == "user"] if isinstance(messages, list) else []
    return said[-1] if said and isinstance(said[-1], str) else ""
