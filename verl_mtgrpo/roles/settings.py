"""Settings of roles: ``trainer.turn.roles``, and what there is to say of one role."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from verl_mtgrpo.settings import Number, Settings


class RolesSettings(Settings):
    """``trainer.turn.roles``: the roles that ``mtgrpo_roles_agent`` plays with one policy."""

    file: str = ""
    """A YAML file with the keys below, for what is too long for a command line. It wins over the config group, so its
    roles take the place of the group's. A key that is set beside it, to something else than the group's value or its
    default, wins over the file; what is set of a single role is added to the file's role."""
    names: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """The roles by name, in the order of speaking; docs/roles.md lists what can be said of each. New keys need a ``+``,
    as in ``+trainer.turn.roles.names.writer.system="You write."``."""
    order: Literal["chain", "graph", "alternate"] = "chain"
    """``chain``: one after the other, each output a row; ``graph``: as each role's ``next`` says, without circles;
    ``alternate``: they talk in turns, and each role's side of the conversation is a row."""
    sampling: Literal["fof", "rr", "is"] = "fof"
    """``chain`` and ``graph``: where a prompt forks into ``actor_rollout_ref.rollout.n`` branches (MHGPO). ``fof``: at
    the first role; ``rr``: at a role drawn from seed, step and question; ``is``: each role answers one input that
    often, and one of the outputs, drawn likewise, goes on."""
    rounds: int = Field(default=30, ge=1)
    """``alternate``: how many times each role speaks at most."""
    finish: str = ""
    """``alternate``: the word with which a conversation ends, once everybody has spoken in that round, such as
    ``[FINISH]``. Empty: after ``rounds`` rounds."""
    finish_role: str = ""
    """``alternate``: who has to write that word. Empty: the first role."""
    unfinished: Literal["score", "zero", "mask"] = "score"
    """``alternate``: what becomes of a conversation that a limit ended. ``score``: it is scored as it is; ``zero``: its
    outcome is 0 (ReMA's ``mask_unfinished_reward``); ``mask``: it is left out of the update."""
    answers: str = ""
    """The role whose output is scored, and which validation looks at. Empty: the last one. In a ``graph`` with several
    ends each end is scored."""
    seed: int = 0
    """Seed of the draws of ``rr`` and ``is``: together with step and question it decides."""


class Role(Settings):
    """One role: a node of ``trainer.turn.roles.names``."""

    system: str = ""
    """Its system message. Empty: the messages of the question's row that come before its last user message."""
    prompt: str = ""
    """What it reads: a text with ``{question}``, ``{NAME}`` for what the role NAME wrote and ``{NAME.result}`` for what
    its tools answered. ``{{`` is a brace. Empty: what ``sees`` says."""
    sees: Literal["own", "partner", "all"] = "partner"
    """Without ``prompt``: what it reads after the question. ``own``: nothing; ``partner``: the outputs of the roles
    that have it as ``next`` (in a conversation: what was said since it spoke, by the one who spoke last); ``all``: the
    outputs of all roles before it, with their names."""
    next: tuple[str, ...] | None = Field(default=None, strict=False)
    """``chain`` and ``graph``: who comes after it. null: nobody; in a chain in which no role says it, the role below
    it."""
    stop: str = ""
    """The text at which its turn ends, such as ``</query>``; it belongs to the turn. Empty: the end of the message."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of one of its turns. null: what is left of ``data.max_response_length``."""
    pattern: str = ""
    """A regular expression that each of its outputs has to match as a whole (``.`` is any character). If it has a
    group, the others read what the first group matched instead of the whole output."""
    penalty: Number = Field(default=0.0, ge=0)
    """Taken from the reward of an output that does not match ``pattern``."""
    reward: str = ""
    """What its own turns earn: a reward function as ``reward.turn.preset`` names one, whose outcome is not used. Empty:
    nothing, except for a role whose output is scored."""
    frozen: bool = False
    """True: it speaks, and nothing is learnt from its tokens."""
    tools: tuple[str, ...] = Field(default=(), strict=False)
    """The tools that it may call, by name; empty: none."""
    call_ends: bool = False
    """True: its output ends with its first turn that calls a tool; the calls are carried out, and the others can read
    their results (``{NAME.result}``)."""
