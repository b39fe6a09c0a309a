"""Keep one record per estimator, which holds everything that other parts of the package need to know about it.

``@register_estimator(...)`` above a function adds one, in this package as in your own project.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

from torch import Tensor

from verl_mtgrpo.errors import ConfigError

Function = Callable[..., tuple[Tensor, Tensor]]
F = TypeVar("F", bound=Function)

_GIVEN = ("token_level_rewards", "response_mask", "index")

ROW_NAMES = ("node_path", "role", "output_id", "fed_by", "pair_id", "pair_side")
"""Fields that are one string per row, and say what the rows of a prompt are to each other. None: nothing."""


@dataclass(frozen=True)
class Estimator:
    """One estimator and the facts about it. Calling it calls the function.

    Attributes:
        function: Takes rewards, mask and group labels, then :attr:`fields`, then :attr:`knobs` by keyword, and returns
            ``(advantages, returns)``, ``(B, T)`` each.
        title: Its name in tables and plots.
        words: What it does, in a sentence or two for somebody who looks at one advantage.
        compares_rollouts: True if its baseline needs other rollouts of the same prompt.
        divides_by_group_std: True if it always divides by a standard deviation over the rollouts of one group.
    """

    function: Function
    title: str
    words: str
    compares_rollouts: bool
    divides_by_group_std: bool

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Compute ``(advantages, returns)``."""
        return self.function(*args, **kwargs)

    @property
    def name(self) -> str:
        """Return the name that it is registered under."""
        return self.function.__name__

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Return what it needs beyond rewards, mask and group labels, such as ``values``."""
        return _positional(self.function)[len(_GIVEN) :]

    @cached_property
    def knobs(self) -> Mapping[str, Any]:
        """Return its settings and their defaults: the keyword-only parameters of the function."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def takes_rollouts(self) -> bool:
        """Return True if every row is a rollout of its own, with no turns or roles that rows share."""
        return not any(name in ROW_NAMES for name in self.fields)

    def divides(self, settings: Mapping[str, Any]) -> bool:
        """Return True if, with these settings, it divides by a standard deviation over the rollouts of one group.

        Such an estimator gives any difference between them the same size, however small it is. ``scale="std"`` says so
        for your own estimators too.
        """
        return self.divides_by_group_std or settings.get("scale") == "std"


ESTIMATORS: dict[str, Estimator] = {}
"""Every estimator by its name."""

_followers: list[Callable[[Estimator], None]] = []


def method_title(name: str) -> str:
    """Return a method's name for tables: the estimator's title, or the preset's name in capitals (GRPO-OR, MT-PPO)."""
    return ESTIMATORS[name].title if name in ESTIMATORS else name.upper().replace("_", "-")


@overload
def register_estimator(function: F, /) -> F: ...
@overload
def register_estimator(
    *, title: str = ..., words: str = ..., compares_rollouts: bool | None = ..., divides_by_group_std: bool = ...
) -> Callable[[F], F]: ...
def register_estimator(
    function: F | None = None,
    /,
    *,
    title: str = "",
    words: str = "",
    compares_rollouts: bool | None = None,
    divides_by_group_std: bool = False,
) -> F | Callable[[F], F]:
    """Add an estimator to :data:`ESTIMATORS`, under the function's name; return the function unchanged.

    A decorator, with or without the facts that its record holds::

        from verl_mtgrpo.credit import register_estimator

        @register_estimator
        def my_estimator(token_level_rewards, response_mask, index, values, transcript, *, discount=1.0):
            ...
            return advantages, returns

    How a training run loads your module: :mod:`verl_mtgrpo.integration.advantage.estimators`.

    Args:
        function: Called with rewards, mask and group labels, then the fields that it names as further positional
            parameters, and, by keyword, its knobs, each of which has a default.
        title: :attr:`Estimator.title`; empty: the function's name.
        words: :attr:`Estimator.words`; empty: the report says that it does not know how the estimator works.
        compares_rollouts: :attr:`Estimator.compares_rollouts`; None: True unless it asks for a critic's ``values``.
        divides_by_group_std: :attr:`Estimator.divides_by_group_std`.

    Registering a function again, or its new version after the module was reloaded, replaces it.

    Raises:
        ConfigError: the function does not start with the three parameters that all have, or the name is taken.
    """

    def register(function: F) -> F:
        compares = "values" not in _positional(function) if compares_rollouts is None else compares_rollouts
        _add(Estimator(function, title or function.__name__, words, compares, divides_by_group_std))
        return function

    return register if function is None else register(function)


def follow_estimators(follower: Callable[[Estimator], None]) -> None:
    """Call ``follower`` for every estimator: now for those that are here, and later for each that is registered.

    For code that hands estimators on to another registry. It may be imported before or after the module that registers
    an estimator.
    """
    for estimator in ESTIMATORS.values():
        follower(estimator)
    _followers.append(follower)


def _add(estimator: Estimator) -> None:
    name, parameters = estimator.name, tuple(inspect.signature(estimator.function).parameters)
    if parameters[: len(_GIVEN)] != _GIVEN:
        raise ConfigError(
            f"the estimator {name} takes {parameters}",
            expected=f"{_GIVEN} first, then fields, then knobs",
        )
    known = ESTIMATORS.get(name)
    if known is not None and not _is_same(known.function, estimator.function):
        raise ConfigError(f"there is an estimator {name} already", fix="rename the function")
    for follower in _followers:  # first: one that refuses the name leaves nothing behind
        follower(estimator)
    ESTIMATORS[name] = estimator


def _positional(function: Function) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _is_same(known: Function, function: Function) -> bool:
    """Return True if one function is the other, or its definition executed once more, as a reload does.

    A function that is defined inside another one is a new one each time: it may remember something else.
    """
    if known is function:
        return True
    if known.__qualname__ != function.__qualname__ or "<locals>" in function.__qualname__:
        return False
    return known.__module__ == function.__module__ or _file(known) == _file(function)


def _file(function: Function) -> str:
    """Return the file that defines it: one module may have two names, such as ``__main__`` when it is the script."""
    return inspect.unwrap(function).__code__.co_filename
