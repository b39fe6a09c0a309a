"""The one form of settings: each has a type, a range, a default and a description; what does not fit is an error.

The text below a field is its description: docs/reference.md and the comments in the YAML files are written from it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import reduce
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from verl_mtgrpo.errors import ConfigError, MTGRPOError

T = TypeVar("T", bound="Settings")

_EXPECTED = {
    "bool_type": "True or False",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "tuple_type": "a list",
    "model_type": "a mapping of settings",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
}
"""What was expected, by pydantic's name of the error."""


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(_number)]
"""A number. A command line may give it as text."""


class Settings(BaseModel):
    """Base of all groups of settings. A misspelt key is an error: it would otherwise silently keep its default."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def read(cls: type[T], values: Any, where: str, of: str = "") -> T:
        """Return the settings that are set in ``values``, and the defaults of the others.

        Args:
            values: A mapping; None for none.
            where: The config key of ``values``, for messages.
            of: What ``where`` belongs to if the key alone does not say it.

        Raises:
            ConfigError: There is an unknown key, or a value of the wrong type or out of range.
        """
        try:
            return cls.model_validate({} if values is None else values)
        except ValidationError as error:
            problems: Any = error.errors(include_url=False)
        raise _unknown_keys(cls(), problems, where, of) or _wrong_value(cls(), problems[0], where, of)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """`` (did you mean x?)``, if one of the known names looks like ``name``; else nothing."""
    by_form = {_plain(one): one for one in known}
    close = difflib.get_close_matches(_plain(str(name)), by_form, n=1, cutoff=0.6)
    return f" (did you mean {by_form[close[0]]}?)" if close else ""


def _plain(name: str) -> str:
    """Names that differ in case, dashes or underscores only have the same plain form."""
    return name.lower().replace("-", "").replace("_", "")


def _unknown_keys(defaults: Settings, problems: Any, where: str, of: str) -> ConfigError | None:
    found = [one["loc"] for one in problems if one["type"] in ("extra_forbidden", "invalid_key")]
    if not found:
        return None
    place = found[0][:-1]
    group = reduce(getattr, place, defaults)
    known = {name: ".*" if isinstance(value, Settings) else f" ({value})" for name, value in group}
    names = sorted(str(loc[-1]) for loc in found if loc[:-1] == place)
    meant = "".join(did_you_mean(name, known) for name in names)
    listed = ", ".join(map("".join, known.items()))
    message = f"{_key(where, place, of)} has unknown keys {names}"
    return ConfigError(message, fix=f"known keys and their defaults: {listed}{meant}")


def _wrong_value(defaults: Settings, problem: Any, where: str, of: str) -> MTGRPOError:
    kind, given, more = problem["type"], problem["input"], problem.get("ctx", {})
    if isinstance(more.get("error"), MTGRPOError):  # of a validator of ours
        return more["error"]
    if problem["loc"][-1:] == ("[key]",):
        message = f"{_key(where, problem['loc'][:-2], of)} has the key {given!r}"
        return ConfigError(message, expected="a text", fix="put it into quotes, or choose another name")
    expected = _EXPECTED[kind].format(**more) if kind in _EXPECTED else problem["msg"]
    if kind == "literal_error":
        choices = tuple(re.findall("'(.*?)'", more["expected"]))
        expected = f"one of {choices}{did_you_mean(given, choices)}"
    *place, name = [part for part in problem["loc"] if isinstance(part, str)] or [""]
    group: Any = reduce(_below, place, defaults)
    default: Any = _below(group, name)
    if default and kind in ("int_type", "float_type", "string_type"):
        expected += f" like {default!r}"
    if isinstance(group, Settings) and name and type(None) in get_args(type(group).model_fields[name].annotation):
        expected += ", or null"
    if kind == "string_type" and isinstance(given, list):
        expected += "; in quotes, where its brackets would make a list of it"
    fix = _single_keys(default if name else group, _key(where, problem["loc"], "")) if kind == "model_type" else ""
    shown = "null" if given is None else repr(given)
    return ConfigError(f"{_key(where, problem['loc'], of)} is {shown}", expected=expected, fix=fix)


def _below(group: Any, name: str) -> Any:
    """Return what a group of settings has under this name; None inside a mapping, whose keys are the user's."""
    return getattr(group, name, None) if isinstance(group, Settings) else None


def _single_keys(group: Settings, key: str) -> str:
    """Return the fix for a value in the place of a whole group of settings."""
    examples = [f"{key}.{name}={value}".lstrip(".") for name, value in group if value not in ("", None)]
    return "set single keys instead" + (f", such as {examples[0]}" if examples else "")


def _key(where: str, loc: Iterable[str | int], of: str) -> str:
    parts = [where, *(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)]
    return "".join(parts).lstrip(".") + (f" of {of}" if of else "")
