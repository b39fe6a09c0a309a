"""The cast of a run: its roles in order, and who reads whose output."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.roles.file import KEY, with_file
from verl_mtgrpo.roles.prompts import QUESTION, default_prompt, misspelt_in, names_in
from verl_mtgrpo.roles.settings import Role, RolesSettings
from verl_mtgrpo.settings import did_you_mean

_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Cast:
    """The roles of a run.

    Attributes:
        settings: ``trainer.turn.roles``, the file's values included.
        roles: Name -> role, in the order in which they speak.
        nexts: Name -> the roles that come after it; empty in a conversation.
    """

    settings: RolesSettings
    roles: dict[str, Role]
    nexts: dict[str, tuple[str, ...]]

    @property
    def names(self) -> list[str]:
        """The names in the order of speaking."""
        return list(self.roles)

    @property
    def talks(self) -> bool:
        """True if the roles have a conversation, so that a row has all turns of its role."""
        return self.settings.order == "alternate"

    @cached_property
    def prompts(self) -> dict[str, str]:
        """Name -> the template of what the role reads first."""
        return {name: role.prompt or self._default_prompt(name, role) for name, role in self.roles.items()}

    @cached_property
    def inputs(self) -> dict[str, list[str]]:
        """Name -> the roles whose outputs it reads directly, in the order of speaking."""
        return {name: [one for one in self.names if one in names_in(text)] for name, text in self.prompts.items()}

    @cached_property
    def scored(self) -> list[str]:
        """The roles whose outputs nobody reads: those that are scored. In a conversation the one that answers."""
        if self.talks:
            return [self.answers]
        return [name for name in self.names if not any(name in read for read in self.inputs.values())]

    @property
    def answers(self) -> str:
        """The role whose output validation looks at."""
        return self.settings.answers or self.names[-1]

    @property
    def finisher(self) -> str:
        """The role that writes the word with which a conversation ends."""
        return self.settings.finish_role or self.names[0]

    @property
    def speaking(self) -> list[str]:
        """The order in which outputs are written, and that of a session's rows: the one that answers is the last."""
        return [*(name for name in self.names if name != self.answers), self.answers]

    def _default_prompt(self, name: str, role: Role) -> str:
        before = self.names[: self.names.index(name)]
        partners = before[-1:] if self.talks else [one for one in before if name in self.nexts[one]]
        return default_prompt({"own": [], "partner": partners, "all": before}[role.sees], named=role.sees == "all")


def read_cast(settings: RolesSettings, of_group: RolesSettings | None = None) -> Cast:
    """Return the roles of a run.

    Args:
        settings: ``trainer.turn.roles``.
        of_group: What the config group alone says there: a file wins over it, and loses to anything else.

    Raises:
        ConfigError: The file cannot be read, or the roles do not fit together.
    """
    if settings.file:
        settings = with_file(settings, of_group or RolesSettings())
    if not settings.names:
        raise ConfigError(
            "mtgrpo_roles_agent has no roles",
            fix=f"name them in {KEY}.names, or in a YAML file ({KEY}.file=roles.yaml)",
        )
    roles = {name: _role(name, values) for name, values in settings.names.items()}
    known = set(roles)
    for key in ("answers", "finish_role"):
        if (named := getattr(settings, key)) and named not in known:
            raise _unknown(f"{KEY}.{key}", named, known)
    nexts = dict.fromkeys(roles, ()) if settings.order == "alternate" else _nexts(settings, roles)
    ordered = {name: roles[name] for name in _in_order(nexts)} if settings.order != "alternate" else roles
    cast = Cast(settings, ordered, nexts)
    _check(cast)
    return cast


def _role(name: str, values: Any) -> Role:
    key = f"{KEY}.names.{name}"
    if not _NAME.fullmatch(name) or name == QUESTION:
        raise ConfigError(
            f"{KEY}.names has a role {name!r}",
            expected=f"letters, digits and underscores, the first of them no digit, and not {QUESTION!r}",
        )
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"{key} is {values!r}", expected="a mapping, such as {system: 'You write queries.'}")
    role = Role.read(values, key)
    try:
        re.compile(role.pattern)
    except re.error as error:
        message = f"{key}.pattern={role.pattern!r} is no regular expression: {error}"
        raise ConfigError(message, fix="correct it, as Python's re takes it; \\( is a parenthesis") from error
    if role.penalty and not role.pattern:
        raise ConfigError(f"{key}.penalty={role.penalty}, but it has no pattern to match", fix=f"set {key}.pattern")
    if role.call_ends and not role.tools:
        raise ConfigError(f"{key}.call_ends=True, but the role has no tools", fix=f"name them in {key}.tools")
    return role


def _nexts(settings: RolesSettings, roles: Mapping[str, Role]) -> dict[str, tuple[str, ...]]:
    chain, names = settings.order == "chain", list(roles)
    as_listed = chain and all(role.next is None for role in roles.values())
    found: dict[str, tuple[str, ...]] = {}
    for number, (name, role) in enumerate(roles.items()):
        following = role.next
        if following is None:
            following = tuple(names[number + 1 : number + 2]) if as_listed else ()
        for one in following:
            if one not in roles:
                raise _unknown(f"{KEY}.names.{name}.next", one, roles)
        if chain and len(following) > 1:
            raise ConfigError(
                f"{KEY}.names.{name}.next={list(following)} has {len(following)} roles, and in a chain there is one",
                fix=f"set {KEY}.order=graph",
            )
        found[name] = following
    return found


def _in_order(nexts: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the roles so that each comes after those that it follows, otherwise as they are listed."""
    left, ordered = list(nexts), list[str]()
    while left:
        free = next((one for one in left if not any(one in nexts[other] for other in left)), None)
        if free is None:
            circle = f"{left[0]} comes after itself" if left[0] in nexts[left[0]] else ""
            raise ConfigError(
                f"{KEY}: {circle or ', '.join(left) + ' come after each other in a circle'}",
                fix=f"remove one `next`, or let them talk in turns with {KEY}.order=alternate",
            )
        left.remove(free)
        ordered.append(free)
    return ordered


def _check(cast: Cast) -> None:
    for number, name in enumerate(cast.names):
        before = cast.names[:number]
        for read in names_in(cast.prompts[name]):
            if read not in cast.roles:
                raise _unknown(f"{KEY}.names.{name}.prompt", "{" + read + "}", {QUESTION, *before})
            if read not in before:
                use = f"use {{{QUESTION}}}{''.join(f', {{{one}}}' for one in before)}"
                first = f", or let {read} come before it ({KEY}.names.{read}.next)" if read != name else ""
                raise ConfigError(
                    f"{KEY}.names.{name}.prompt has {{{read}}}, but {read} has not spoken when {name} does",
                    fix=use + first,
                )
        for place in misspelt_in(cast.prompts[name], {QUESTION, *cast.roles}):
            raise ConfigError(
                f"{KEY}.names.{name}.prompt has {place}, which is no placeholder and would stay as it is",
                expected=f"{{{QUESTION}}}, {{NAME}} or {{NAME.result}}; a brace of the text itself is {{{{",
            )
    if all(role.frozen for role in cast.roles.values()):
        are = "is" if len(cast.names) == 1 else "are"
        raise ConfigError(
            f"{KEY}: {', '.join(cast.names)} {are} frozen, so nothing would be learnt",
            fix=f"set {KEY}.names.{cast.answers}.frozen=False",
        )
    if cast.talks:
        if len(cast.names) < 2:
            raise ConfigError(f"{KEY}.order=alternate with one role", expected="two roles or more")
        return
    if cast.answers not in cast.scored:
        raise ConfigError(
            f"{KEY}: the role that answers is {cast.answers}, but another role reads its output",
            fix=f"set {KEY}.answers to {' or '.join(cast.scored)}",
        )
    unread = [name for name in cast.scored if name != cast.answers]
    if unread and cast.settings.order == "chain":
        raise ConfigError(
            f"{KEY}: nobody reads what {', '.join(unread)} writes, so it would have no outcome",
            fix=f"put {{{unread[0]}}} into the prompt of a later role, or set {KEY}.order=graph to score it itself",
        )


def _unknown(key: str, name: str, known: Any) -> ConfigError:
    plain = name.strip("{}")
    return ConfigError(
        f"{key} names {name}{did_you_mean(plain, known)}",
        expected=f"one of {', '.join(sorted(known))}",
        fix="" if plain == name else f"correct it; as a part of the text itself it is {{{{{plain}}}}}",
    )
