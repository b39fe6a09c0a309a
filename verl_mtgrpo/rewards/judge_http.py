"""Ask the judge over HTTP, and decide which failed requests to send again and which can never work.

We do not use the client's retries: it does not retry after 425, and it cannot tell whether the judge or a router in
front of it has failed. A request is sent again after time-outs, broken connections, 408, 409, 425, 429 and 5xx, after
growing, jittered pauses or as long as ``Retry-After`` asks. All other 4xx are final, and so is a 5xx in which a proxy
passes on such a refusal. verl's router (``verl/experimental/reward_loop/router/naive_router.py``, 0.9.1) answers *any*
error of the engine with a bare 500. In that case we ask the engine's ``/tokenize`` (vLLM and SGLang have it) once
whether the prompt is longer than its context; if it does not say so, the request is sent again as after any 5xx.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from verl_mtgrpo.errors import ConfigError, JudgeError, TooLongError
from verl_mtgrpo.retry_after import parse_retry_after
from verl_mtgrpo.text import encodable

if TYPE_CHECKING:
    from openai import APIStatusError

    from verl_mtgrpo.rewards.judge_client import JudgeSettings

Chat = list[dict[str, str]]

_AGAIN = (408, 409, 425, 429)
"""Status codes below 500 after which a request is sent again, because nothing is wrong with the request."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_ASKED_S = 0.5, 8.0, 120.0
_REFUSALS = ("BadRequestError", "BadRequest", "invalid_request_error", "exceed_context_size_error")
"""The body's ``type`` with which vLLM, SGLang, OpenAI and llama.cpp refuse a faulty request."""
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|maximum model length|max_model_len|maximum prompt length|too many tokens"
    r"|(?:prompt|input) is too long|reduce the length",
    re.IGNORECASE,
)
"""Phrases by which servers say that a prompt is longer than the model's context."""
_TRIES_AT_TOKENIZE = 3
"""More than one, because a server that fails in a handler, like verl's router, closes the connection afterwards."""
_TEMPLATE_TOKENS = 64
"""Room for the tokens that the judge's chat template adds to a prompt, and for the shortest reply."""


class Tokens(NamedTuple):
    """What a request took, as the server counts it; a count that it does not give is None."""

    total: int | None = None
    prompt: int | None = None
    completion: int | None = None


class Endpoint:
    """An OpenAI-compatible endpoint. One per reward worker; safe to call concurrently.

    Args:
        settings: Address, model, limits and retries.
        preset: Name of the reward preset, for messages.

    Raises:
        ConfigError: The client is not installed.
    """

    def __init__(self, settings: JudgeSettings, preset: str) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ConfigError(
                f"reward.turn.preset={preset} needs the openai client", fix="pip install openai"
            ) from error
        self._settings = settings
        self.name = f"the judge {settings.model} at {settings.base_url}"
        self._client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get(settings.api_key_env) or "none",
            timeout=settings.timeout_s,
            max_retries=0,
        )
        self._slots = asyncio.Semaphore(settings.concurrency)

    async def say(self, messages: Chat) -> tuple[str, Tokens]:
        """Return the judge's reply to a chat, and the tokens of both.

        Raises:
            TooLongError: The chat is longer than the judge's context.
            JudgeError: The judge could not be reached, refused the request, or sent something other than a completion.
        """
        async with self._slots:
            completion = await self._completion(messages)
        content, tokens = _read_completion(completion)
        if content is None:
            raise JudgeError(
                f"{self.name} sent {str(completion)[:200]!r}",
                expected="a chat completion",
                fix="is this the address of an OpenAI-compatible server, with its /v1?",
            )
        return content, tokens

    async def _completion(self, messages: Chat) -> Any:
        from openai import APIConnectionError, APIStatusError, OpenAIError

        tries = 0
        while True:
            tries += 1
            try:
                return await self._client.chat.completions.create(
                    model=self._settings.model,
                    messages=messages,  # type: ignore[arg-type]
                    temperature=0.0,
                )
            except APIStatusError as error:
                await self._stop_at_refusal(error, messages, tries)
                failure, asked = error, _asked_pause_s(error.response.headers)
            except APIConnectionError as error:  # time-outs too
                failure, asked = error, 0.0
            except (OpenAIError, ValueError, RecursionError) as error:  # the body is not JSON, or a million brackets
                raise JudgeError(f"{self.name} sent what cannot be read: {_said_by(error)}") from error
            if tries > self._settings.retries or asked > _LONGEST_ASKED_S:
                wait = f" (it asks to wait {asked:.0f} s)" if asked > _LONGEST_ASKED_S else ""
                raise JudgeError(
                    f"{self.name} failed after {tries} tries: {_said_by(failure)}{wait}",
                    fix=f"is the server up, and {self._settings.api_key_env} set?",
                ) from failure
            await asyncio.sleep(_pause_s(tries, asked))

    async def _stop_at_refusal(self, error: APIStatusError, messages: Chat, tries: int) -> None:
        """Raise if sending the request again would lead to the same response."""
        status, text = error.status_code, error.response.text
        body = _error_of(text)
        if status in _AGAIN or (status >= 500 and not _refuses(body, text)):
            opaque = status == 500 and not body and tries == 1  # verl's router sends such a response
            if not (opaque and await self._is_too_long(messages)):
                return
            raise TooLongError(f"{self.name} failed (HTTP 500), and its /tokenize says the prompt is too long for it")
        if status == 413 or (status not in (401, 403, 404) and _TOO_LONG.search(text)):
            raise TooLongError(f"{self.name} says that the prompt is too long for it: {_said_by(error)}")
        if status in (401, 403):
            advice = f"set the environment variable {self._settings.api_key_env} to a key that it accepts"
        elif status == 404:
            advice = "correct reward.turn.judge.base_url (with its /v1) or reward.turn.judge.model"
        else:
            advice = "change what it objects to"
        raise JudgeError(
            f"{self.name} refused the request, which is not sent again: {_said_by(error)}", fix=advice
        ) from error

    async def _is_too_long(self, messages: Chat) -> bool:
        """Return True if the engine itself counts more tokens than fit in its context; False if it cannot say."""
        from openai import APIConnectionError, OpenAIError

        url = f"{self._settings.base_url.rstrip('/').removesuffix('/v1')}/tokenize"
        body = {"model": self._settings.model, "prompt": "\n".join(message["content"] for message in messages)}
        answer: object = None
        for _ in range(_TRIES_AT_TOKENIZE):
            try:
                answer = await self._client.post(url, cast_to=object, body=body)
            except APIConnectionError:
                continue
            except (OpenAIError, ValueError, RecursionError):  # other servers have no /tokenize
                pass
            break
        found: dict[str, Any] = answer if isinstance(answer, dict) else {}
        count, most = found.get("count"), found.get("max_model_len")
        return isinstance(count, int) and isinstance(most, int) and count + _TEMPLATE_TOKENS > most > 0


def _error_of(text: str) -> dict[str, Any]:
    """Return the error in a response's body, in the form of OpenAI or, one level higher, of older servers."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {"message": str(error)}


def _refuses(body: dict[str, Any], text: str) -> bool:
    """Return True if a 5xx passes on a refusal, such as that of the engine behind a proxy."""
    code = str(body.get("code"))
    final = bool(re.fullmatch("4[0-9][0-9]", code)) and int(code) not in _AGAIN
    return final or body.get("type") in _REFUSALS or bool(_TOO_LONG.search(text))


def _said_by(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _asked_pause_s(headers: Any) -> float:
    """Return how many seconds the server asks to wait; 0 if it does not ask."""
    in_ms = headers.get("Retry-After-Ms", "")  # Azure and OpenAI send this
    return float(in_ms) / 1000 if re.fullmatch("[0-9]{1,12}", in_ms) else parse_retry_after(headers.get("Retry-After"))


def _pause_s(tries: int, asked: float) -> float:
    if asked:
        return asked * random.uniform(1.0, 1.1)  # so that workers do not all return at the same moment
    return min(_FIRST_PAUSE_S * 2 ** (tries - 1), _LONGEST_PAUSE_S) * random.uniform(0.75, 1.0)


def _read_completion(reply: Any) -> tuple[str | None, Tokens]:
    """Return the text and the tokens of a completion; the text is None if the reply is not a completion.

    The client returns anything that came with status 200: the page of a proxy as a string, or ``null``.
    """
    try:
        content = reply.choices[0].message.content if reply.choices else ""
        usage = getattr(reply, "usage", None)
        counts = [getattr(usage, f"{name}_tokens", None) for name in Tokens._fields]
    except (AttributeError, TypeError, LookupError):
        return None, Tokens()
    tokens = Tokens(*(count if isinstance(count, int) else None for count in counts))
    if content is not None and not isinstance(content, str):
        return None, Tokens()
    # Half surrogate pairs cannot be sent back when the judge is asked again.
    return encodable(content or ""), tokens
