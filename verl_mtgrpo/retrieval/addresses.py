"""Addresses and tokens of search services."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.retrieval import wire


def base_url(url: str) -> str:
    """Return the address without ``/retrieve`` and without a trailing slash.

    Raises:
        ConfigError: The URL is not an HTTP(S) address, or it contains a user name or password.
    """
    example = "an address such as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(f"the address of the search service is {url!r}", expected=example) from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the address of the search service holds a user name or password, which would end up in logs",
            fix="put a token into an environment variable and name it (token_env)",
        )
    if not valid or parts.query or parts.fragment:
        raise ConfigError(f"the address of the search service is {url!r}", expected=example)
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path[: -len(wire.PATH)] if path.endswith(wire.PATH) else path}"


_HOST = r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:]+\])"
_BARE = re.compile(rf"(?:https?:/*)?((?:{_HOST}:\d{{1,5}}|localhost)(?:/.*)?)", re.IGNORECASE)


def is_address(spec: str) -> bool:
    """Return True if ``spec`` names a service (it has a scheme, as in ``http://``) rather than a folder."""
    return "://" in spec


def meant_address(path: str) -> str | None:
    """Guess the address that a path was meant as: ``localhost:8000`` -> ``http://localhost:8000``; None if none."""
    found = _BARE.fullmatch(path)
    return f"http://{found[1]}" if found else None


def is_this_machine(url: str) -> bool:
    """Return True if the address is on the loopback interface."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def read_token(token_env: str | None) -> str | None:
    """Return the bearer token in the environment variable ``token_env``; None if no variable is named.

    Raises:
        ConfigError: The variable is unset or empty.
    """
    if token_env is None:
        return None
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise ConfigError(
            "the token of the search service is missing",
            fix=(
                f"set the environment variable {token_env} (before `ray start`, if Ray is already running), or leave "
                "token_env empty"
            ),
        )
    return token
