"""Check the services that a run uses: the search and the judge."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sized
from typing import Any
from urllib.parse import urlsplit

from verl_mtgrpo.doctor.findings import Finding, from_error, one_line
from verl_mtgrpo.doctor.setup import Found, Setup, Tool, question_of
from verl_mtgrpo.errors import ConfigError, IndexFormatError, MTGRPOError, NoIndexError, RetrievalError
from verl_mtgrpo.integration.rollout.search_settings import open_index, search_settings
from verl_mtgrpo.integration.settings import turn_reward_settings
from verl_mtgrpo.retrieval import HTTPRetriever, Passage
from verl_mtgrpo.rewards import JUDGES
from verl_mtgrpo.rewards.judge_client import JudgeSettings

ASKED = 8
"""How many of the first questions to search for."""
JUDGE_S = 15.0
"""Longest time in seconds that one request to the judge may take."""
DEAD = "start it (mtgrpo serve INDEX), or fix the address in MTGRPO_INDEX or the tool YAML"


def index(setup: Setup) -> Iterator[Finding]:
    """Yield whether each search tool has an index, and whether it finds anything."""
    yield from setup.searches.said()


def open_searches(setup: Setup) -> Generator[Finding, None, list[Found]]:
    """Open the index of each search tool, search for the first questions, and return the results."""
    found: list[Found] = []
    searching = [tool for tool in setup.tools if tool.searches]
    if not searching:
        yield Finding("index", "skip", "no search tool of this package in this run")
    for tool in searching:
        spec = tool.config.get("index")
        try:
            said, hits = _search(setup, tool, spec)
            yield said
            found += hits
        except NoIndexError as error:
            wrong = from_error("index", error)
            yield setup.absent("index", wrong.message, wrong.fix)
        except IndexFormatError as error:
            yield from_error("index", error)
        except ConfigError as error:
            wrong = from_error("index", error)
            yield wrong if spec else setup.absent("index", wrong.message, wrong.fix)
        except RetrievalError as error:
            wrong = from_error("index", error, DEAD)
            yield setup.absent("index", wrong.message, wrong.fix)  # other machines may reach it
    return found


def _search(setup: Setup, tool: Tool, spec: Any) -> tuple[Finding, list[Found]]:
    settings = search_settings(tool.config)
    if setup.patience_s is not None:
        patience = min(setup.patience_s, settings.patience_s)
        shorter = {"patience_s": patience, "request_timeout_s": min(patience, settings.request_timeout_s)}
        settings = settings.model_copy(update=shorter)
    opened = open_index(settings)
    count = len(opened) if isinstance(opened, Sized) else None  # a service does not say how many it has
    if count == 0:
        fix = "build it: mtgrpo index CORPUS --out DIR"
        return Finding("index", "fail", f"the index {spec} has no passages", fix), []
    key = str(setup.get("data.prompt_key") or "prompt")
    questions = [text for row in setup.rows[:ASKED] if (text := question_of(row, key))]
    hits: list[list[Passage]] = opened.search(questions, settings.k) if questions else []
    if isinstance(opened, HTTPRetriever):
        opened.close()
    found = [(tool, passages) for passages in hits]
    holds = "a search service" if count is None else f"{count} passages"
    asked = f", results for {sum(map(bool, hits))} of the first {len(hits)} questions" if hits else ", it answers"
    if hits and not any(hits):
        message = f"{spec}: {holds}, but nothing is found for any of the first {len(hits)} questions"
        fix = "is this the corpus for these questions? mtgrpo data --index says more"
        return Finding("index", "warn", message, fix), found
    return Finding("index", "ok", f"{spec}: {holds}{asked}"), found


def judge(setup: Setup) -> Iterator[Finding]:
    """Send one tiny request to the judge, if there is one."""
    reward = setup.get("reward")
    try:
        settings = turn_reward_settings(reward)
    except MTGRPOError:
        return  # the check rewards reports it
    if settings.preset not in JUDGES:
        return
    asked = settings.judge
    if not asked.base_url:
        yield Finding("judge", "skip", "verl serves the judge once the run has started")
        return
    key = os.environ.get(asked.api_key_env, "")
    yield _ask(setup, asked, key, settings.preset)  # without a key too: not every judge needs one


def _shown(url: str) -> str:
    """Return the address without user name, password and query, any of which may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _ask(setup: Setup, asked: JudgeSettings, key: str, preset: str) -> Finding:
    try:
        import openai
    except ImportError:
        return Finding("judge", "fail", f"reward.turn.preset={preset} needs the openai client", "pip install openai")
    limit = min(asked.timeout_s, JUDGE_S)
    where = f"the judge {asked.model} at {_shown(asked.base_url)}"
    messages: Any = [{"role": "user", "content": "Answer with the digit 1."}]
    try:
        with openai.OpenAI(base_url=asked.base_url, api_key=key or "none", timeout=limit, max_retries=0) as client:
            client.chat.completions.create(model=asked.model, messages=messages, temperature=0.0)
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        state = "is not set" if not key else "is set"
        message = f"{where} refuses (HTTP {error.status_code}), the environment variable {asked.api_key_env} {state}"
        fix = f"export {asked.api_key_env}=<a key that it accepts> (before `ray start`, if Ray is already running)"
        return Finding("judge", "fail", message, fix)
    except openai.APITimeoutError:
        message = f"{where} did not answer within {limit:g} s"
        return Finding("judge", "warn", message, "is it busy? reward.turn.judge.timeout_s is how long a run waits")
    except openai.RateLimitError as error:
        return Finding("judge", "warn", f"{where} is busy (HTTP {error.status_code})", "a run retries by itself")
    except openai.OpenAIError as error:
        message = f"{where} cannot be asked: {type(error).__name__}: {one_line(str(error))[:200]}"
        if key:
            message = message.replace(key, "***")
        fix = "start it, or fix reward.turn.judge.base_url and reward.turn.judge.model"
        unreached = isinstance(error, openai.APIConnectionError)  # other machines may reach it
        return setup.absent("judge", message, fix) if unreached else Finding("judge", "fail", message, fix)
    return Finding("judge", "ok", f"{where} answers")
