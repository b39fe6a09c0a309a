"""The estimators by name, and what each needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from verl_mtgrpo.credit.critic import bilevel_gae, turn_gae
from verl_mtgrpo.credit.mt_grpo import mt_grpo, mt_grpo_v1
from verl_mtgrpo.credit.return_to_go import gtpo, turn_reinforce_pp, turn_rloo
from verl_mtgrpo.errors import ConfigError

Estimator = Callable[..., tuple[Tensor, Tensor]]
F = TypeVar("F", bound=Estimator)

ESTIMATORS: dict[str, Estimator] = {
    function.__name__: function
    for function in (mt_grpo, mt_grpo_v1, turn_rloo, gtpo, turn_reinforce_pp, turn_gae, bilevel_gae)
}
"""Every estimator by the name it is registered under in verl (``algorithm.adv_estimator``)."""

_GIVEN = ("token_level_rewards", "response_mask", "index")

_followers: list[Callable[[str, Estimator], None]] = []


def register_estimator(function: F) -> F:
    """Add an estimator of your own to :data:`ESTIMATORS`, under the function's name; returns it unchanged.

    Do so in a module that every process loads with verl (``VERL_USE_EXTERNAL_MODULES=my_module``); it may register
    agent loops as well, and import of verl what it wants, before or after::

        from verl_mtgrpo.credit import register_estimator

        @register_estimator
        def my_estimator(token_level_rewards, response_mask, index, values, transcript, *, discount=1.0):
            ...
            return advantages, returns

    Args:
        function: Called with rewards, mask and group labels, then the fields that it names as further positional
            parameters, which ``trainer.v1.trainer_mode=mtgrpo_sync`` passes on, and, by keyword, its knobs from
            ``algorithm.turn``, each of which has a default. Returns ``(advantages, returns)``, ``(B, T)`` each.

    Registering a function again, or its new version after the module was reloaded, replaces it.

    Raises:
        ConfigError: it does not start with the three parameters that all have, or the name is taken, here or in verl.
    """
    name, parameters = function.__name__, tuple(inspect.signature(function).parameters)
    if parameters[: len(_GIVEN)] != _GIVEN:
        raise ConfigError(f"the estimator {name} takes {parameters}, expected {_GIVEN} first, then fields, then knobs")
    known = ESTIMATORS.get(name)
    if known is not None and not _is_same(known, function):
        raise ConfigError(f"there is an estimator {name} already; rename the function")
    for follower in _followers:  # first: one that refuses the name leaves nothing behind
        follower(name, function)
    ESTIMATORS[name] = function
    return function


def follow_estimators(follower: Callable[[str, Estimator], None]) -> None:
    """Have ``follower(name, function)`` called for every estimator: those that are here now, and each that comes later.

    For whoever hands them on, as the package's glue does to verl's registry. It may be imported before or after the
    module that registers an estimator.
    """
    for name, function in ESTIMATORS.items():
        follower(name, function)
    _followers.append(follower)


def _is_same(known: Estimator, function: Estimator) -> bool:
    """Whether one function is the other, or its definition executed once more, as a reload does.

    A function made inside another one is a new one each time: what it remembers may differ.
    """
    if known is function:
        return True
    if known.__qualname__ != function.__qualname__ or "<locals>" in function.__qualname__:
        return False
    return known.__module__ == function.__module__ or _file(known) == _file(function)


def _file(function: Estimator) -> str:
    """The file that defines it: the same module may be known by two names (``__main__``, verl's ``file.py``)."""
    return inspect.unwrap(function).__code__.co_filename


def extra_fields(name: str) -> tuple[str, ...]:
    """What the estimator needs beyond rewards, mask and group labels, such as ``values``."""
    parameters = inspect.signature(ESTIMATORS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[len(_GIVEN) :]


def compares_rollouts(name: str) -> bool:
    """Whether the baseline is other rollouts of the prompt, of which there have to be some then."""
    return name != "turn_reinforce_pp" and "values" not in extra_fields(name)


def divides_by_group_std(name: str, settings: Mapping[str, Any]) -> bool:
    """Return whether the estimator divides by a standard deviation over the rollouts of one group.

    Such an estimator gives any difference between them the same size, however small it is.

    Args:
        name: One of :data:`ESTIMATORS`.
        settings: Its knobs. ``scale="std"`` says it of an estimator of your own, too.
    """
    return name in (mt_grpo_v1.__name__, gtpo.__name__) or settings.get("scale") == "std"
