"""Refuse settings of an estimator that are out of range."""

from __future__ import annotations

import math
from collections.abc import Sequence

from verl_mtgrpo.errors import CreditInputError


def check_finite(name: str, value: float) -> None:
    """Raise ``CreditInputError`` unless ``value`` is a finite number."""
    if not math.isfinite(value):
        raise refusal(name, f"{name} is {value}", expected="a finite number")


def check_number(name: str, value: float) -> None:
    """Raise ``CreditInputError`` unless ``value`` is a finite number >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise refusal(name, f"{name} is {value}", expected="a finite number >= 0")


def check_share(name: str, value: float) -> None:
    """Raise ``CreditInputError`` unless ``value`` is a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise refusal(name, f"{name} is {value}", expected="a number from 0 to 1")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``CreditInputError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise refusal(name, f"{name} is {value!r}", expected=f"one of {tuple(choices)}")


def refusal(argument: str, message: str, *, expected: str = "", fix: str = "") -> CreditInputError:
    """Return an error that names the argument at fault, for callers that know where it was set."""
    error = CreditInputError(message, expected=expected, fix=fix)
    error.argument = argument
    return error
