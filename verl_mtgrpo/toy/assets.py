"""Make what a trial of a command line trains: a tiny policy that suits the run, and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.toy.shrink import PROMPT, RESPONSE, ROLLOUTS

if TYPE_CHECKING:
    from verl_mtgrpo.doctor.setup import Tool

FORMAT = "actor_rollout_ref.rollout.multi_turn.format"
OWN_RESPONSE = 512
"""Tokens of a response with tools of the user's, whose results may be long, and in a conversation of roles."""
_ROUNDS = 4
"""The most rounds of a conversation of roles: more do not fit its response."""


@dataclass(frozen=True)
class Assets:
    """What a trial trains: the folder of policy and questions, their sizes, and what it needs of the command."""

    folder: Path
    prompt: int = PROMPT
    response: int = RESPONSE
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    index: Path | None = None


def make_assets(made: Path, config: Any) -> Assets:
    """Make a policy that speaks the run's format and calls its tools, and questions, once.

    The user's own questions are taken if they are here.

    Args:
        made: The folder for policies.
        config: verl's whole config.
    """
    from verl_mtgrpo.demo.toy import SPEECHES
    from verl_mtgrpo.doctor.setup import Setup
    from verl_mtgrpo.doctor.tools import declared
    from verl_mtgrpo.toy.rows import first_rows

    tools, spoken = declared(Setup(config)), str(config.actor_rollout_ref.rollout.multi_turn.format)
    rows = first_rows(config.data.train_files)
    only_search = all(tool.name == "search" for tool in tools)
    if tools and only_search and spoken in SPEECHES and (not rows or any(tool.searches for tool in tools)):
        return _searches(made, config, spoken)
    if spoken in SPEECHES and SPEECHES[spoken].format != "hermes":
        names = ", ".join(tool.name for tool in tools)
        message = f"the tiny policy writes the format {spoken} for the tool search only, and the run has {names}"
        raise ConfigError(message, fix=f"try it with {FORMAT}=hermes")
    return _calls(made, config, tools, rows)


def _searches(made: Path, config: Any, spoken: str) -> Assets:
    """Make the policy that searches a single passage."""
    from verl_mtgrpo.demo.toy import SPEECHES, make_toy

    folder = make_toy(made / f"toy-{spoken}", SPEECHES[spoken], questions=2 * ROLLOUTS)
    prompt = PROMPT + read_by_a_role(config, folder / "policy", RESPONSE)
    return Assets(folder, prompt, index=folder / "index")


def _calls(made: Path, config: Any, tools: Sequence[Tool], rows: Sequence[Mapping[str, Any]]) -> Assets:
    """Make the policy that calls any tools, or none."""
    from verl_mtgrpo.integration.roles import roles_settings
    from verl_mtgrpo.toy.policy import make_caller

    names, roles = [tool.name for tool in tools], roles_settings(config)
    print(f"a policy that calls {', '.join(names) or 'no tool'}, in {made}; making it takes a minute of an idle core",
          flush=True)  # fmt: skip
    folder = made / f"calls-{'-'.join(sorted(names)) or 'nothing'}"[:80]
    toy = make_caller(folder, schemas_of(tools), rows=rows, prompt_key=str(config.data.prompt_key), finish=roles.finish)
    changes: dict[str, Any] = {}
    if config.actor_rollout_ref.rollout.multi_turn.format != "hermes":
        changes[FORMAT] = "hermes"
    if roles.order == "alternate" and roles.rounds > _ROUNDS:
        changes["trainer.turn.roles.rounds"] = _ROUNDS
    prompt = toy.prompt_tokens + read_by_a_role(config, toy.folder / "policy", OWN_RESPONSE)
    return Assets(toy.folder, prompt, OWN_RESPONSE, changes)


def read_by_a_role(config: Any, policy: Path, response: int) -> int:
    """Return how many tokens a role reads at most beside the question, before it speaks; 0 without roles.

    Args:
        config: verl's whole config.
        policy: Folder of the policy, whose tokenizer counts.
        response: Tokens of a row's response, which is the most that can be read of another role.
    """
    from transformers import AutoTokenizer

    from verl_mtgrpo.integration.roles import cast_of, plays_roles

    if not plays_roles(config):
        return 0
    cast, count = cast_of(config), AutoTokenizer.from_pretrained(policy).encode
    return max(
        len(count(role.system)) + len(count(cast.prompts[name])) + response * len(cast.inputs[name])
        for name, role in cast.roles.items()
    )


def schemas_of(tools: Sequence[Tool]) -> list[Mapping[str, Any]]:
    """Return the schemas of the tools.

    Raises:
        ConfigError: Only the tool itself knows its schema.
    """
    for tool in tools:
        if tool.schema is None:
            message = f"only the class of the tool {tool.name} knows its schema, so no arguments can be made up"
            raise ConfigError(message, fix="write the schema as tool_schema into its YAML")
    return [tool.schema for tool in tools if tool.schema is not None]
