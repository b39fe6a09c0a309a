"""Call the reward functions of a run once on a made-up rollout, so that errors show before the first step.

Certain errors fail: a file that cannot be loaded, arguments that do not fit, a result of the wrong kind. Errors that
may come from the rollout being made up only warn. A judge is never asked, since that costs money.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from verl_mtgrpo.doctor.findings import Finding, from_error, one_line
from verl_mtgrpo.doctor.setup import MULTI_TURN, Setup, Tool
from verl_mtgrpo.errors import DropRollout, MTGRPOError
from verl_mtgrpo.integration.data_sources import is_scored_by_verl
from verl_mtgrpo.integration.roles import cast_of, plays_roles
from verl_mtgrpo.integration.settings import TurnRewardSettings, turn_reward_settings
from verl_mtgrpo.integration.verl_score import model_text, read_score, score_arguments
from verl_mtgrpo.own_code import described, misfit
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.rewards import JUDGES, PRESETS, ToolCall, Transcript, Turn, load_preset
from verl_mtgrpo.rewards.answers import accepted_answers
from verl_mtgrpo.rewards.formats import FORMATS, HERMES, TextFormat
from verl_mtgrpo.rewards.measures import tool_trouble
from verl_mtgrpo.rewards.pattern import TURN_PATTERN
from verl_mtgrpo.rewards.presets import check_kind, check_numbers, pay
from verl_mtgrpo.settings import did_you_mean

CHECK = "reward"
LIMIT_S = 20.0
"""Longest time in seconds that a reward function may take here."""
SCORE = "reward.custom_reward_function"
ROW = "the first training question"


def reward_function(setup: Setup) -> Iterator[Finding]:
    """Yield whether the user's reward functions can be loaded, and what they return for a rollout of two turns."""
    if setup.get("reward.reward_manager.name") != "mtgrpo":
        return
    try:
        settings = turn_reward_settings(setup.get("reward"))
    except MTGRPOError:
        return  # the check rewards reports it
    asked = {settings.preset: "reward.turn.preset", **_of_roles(setup.config)}
    for preset, key in asked.items():
        if ":" in preset:
            yield from _own_preset(setup, preset, key)
    if settings.outcome == "compute_score" and not setup.get("reward.reward_model.enable"):
        yield from _compute_score(setup)
    yield from _filter_metric(setup, settings)


def _of_roles(config: Any) -> dict[str, str]:
    """Return the reward functions of the turns of roles, each with a setting that names it."""
    try:
        roles = cast_of(config).roles if plays_roles(config) else {}
    except MTGRPOError:
        return {}  # the check roles reports it
    return {role.reward: f"trainer.turn.roles.names.{name}.reward" for name, role in roles.items() if role.reward}


def _filter_metric(setup: Setup, settings: TurnRewardSettings) -> Iterator[Finding]:
    """Yield whether every rollout has the number by which verl filters groups; without it verl stops in step 1."""
    metric = str(setup.get("algorithm.filter_groups.metric"))
    if not setup.get("algorithm.filter_groups.enable") or metric in ("None", "reward", TURN_PATTERN):
        return
    scored_elsewhere = settings.preset in JUDGES or settings.outcome == "compute_score"  # with different numbers
    if scored_elsewhere or not setup.rows or _no_truth(setup):
        return
    truth = setup.rows[0]["reward_model"]["ground_truth"]
    rollout = made_up(setup, truth)
    infos = [_named_numbers(settings, one, truth) for one in (rollout, replace(rollout, turns=rollout.turns[1:]))]
    known = [info for info in infos if info is not None]
    lacking = [info for info in known if info.get(metric) is None]
    if not lacking:
        return
    names = sorted(name for name in known[0] if all(info.get(name) is not None for info in known))
    never = len(lacking) == len(known) == len(infos)
    which = (
        "the rewards have no number of this name"
        if never
        else "not every rollout has it, for example one with one turn"
    )
    message = f"algorithm.filter_groups.metric={metric}: {which}, and verl ends the run when it is missing"
    fix = f"set it to {TURN_PATTERN}, reward or one of {', '.join(names)}{did_you_mean(metric, names)}"
    yield Finding(CHECK, "fail" if never and settings.preset in PRESETS else "warn", message, fix)


def _named_numbers(settings: TurnRewardSettings, rollout: Transcript, truth: Any) -> Mapping[str, Any] | None:
    """Return the ``reward_extra_info`` that a rollout would have; None if its reward function fails."""
    from verl_mtgrpo.integration.reward_manager import metrics

    try:
        rewards, error = _call(partial(load_preset(settings.preset), rollout, truth))
        if error is not None:
            return None
        rewards = check_numbers(check_kind(rewards, settings.preset), len(rollout.turns), settings.preset)
    except MTGRPOError:
        return None  # _own_preset reports it
    return {**metrics(rollout, rewards, pay(rewards, len(rollout.turns), settings.pay)), **tool_trouble(rollout)}


def _own_preset(setup: Setup, preset: str, key: str) -> Iterator[Finding]:
    try:
        function = load_preset(preset, key)
    except MTGRPOError as error:
        missing = from_error(CHECK, error)
        yield setup.absent(CHECK, missing.message, missing.fix)
        return
    if problem := _arity(function, preset, (None, None), {}, "a transcript and the ground truth: fn(transcript, gt)"):
        yield problem
        return
    row = setup.rows[0] if setup.rows else None
    if problem := _no_truth(setup):
        yield problem
    elif row is None:
        yield Finding(CHECK, "ok", f"{preset} can be loaded (not called: no question passed the check data)")
    else:
        truth = row["reward_model"]["ground_truth"]
        yield _judged(preset, truth, made_up(setup, truth), function)


def _judged(preset: str, truth: Any, transcript: Transcript, function: Callable[..., Any]) -> Finding:
    result, error = _call(partial(function, transcript, truth))
    if isinstance(error, DropRollout):
        return Finding(CHECK, "ok", f"{preset} drops a made-up rollout of 2 turns: {one_line(str(error))}")
    if error is not None:
        return _raised(preset, truth, error, preset.rpartition(":")[0])
    try:
        rewards = check_kind(result, preset)
    except MTGRPOError as wrong:
        return from_error(CHECK, wrong)
    try:
        rewards = check_numbers(rewards, len(transcript.turns), preset)
    except MTGRPOError as wrong:
        found = from_error(CHECK, wrong, status="warn")
        return Finding(CHECK, "warn", f"on a made-up rollout {found.message}", found.fix)
    paid = ", ".join(f"{float(one):g}" for one in rewards.turns)
    message = f"{preset} gives a made-up rollout of 2 turns {paid} and an outcome of {float(rewards.outcome):g}"
    return Finding(CHECK, "ok", message)


def _compute_score(setup: Setup) -> Iterator[Finding]:
    """Yield the outcome that verl's reward function returns."""
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.reward_score import default_compute_score

    path, name = setup.get(f"{SCORE}.path"), f"{setup.get(f'{SCORE}.path')}:{setup.get(f'{SCORE}.name')}"
    try:
        function = get_custom_reward_fn(setup.config)
    except (Exception, SystemExit) as error:  # a file of the user's: running it may raise anything
        reason = described(error.__cause__ or error, str(path))
        message = f"{SCORE}.path={path} cannot be loaded: {one_line(reason)}"
        yield setup.absent(CHECK, message, f"fix {SCORE}.path and {SCORE}.name")
        return
    if problem := _no_truth(setup):
        yield problem
        return
    if not setup.rows:
        return
    row: dict[str, Any] = {"data_source": "", **setup.rows[0]}
    truth = row["reward_model"]["ground_truth"]
    if not function and not is_scored_by_verl(str(row["data_source"])):
        return  # the check data reports it
    arguments = score_arguments({**row, "__num_turns__": 4}, model_text(made_up(setup, truth)), own=bool(function))
    if isinstance(function, partial):  # verl wraps the user's function together with its reward_kwargs
        user, extra = function.args
        expected = f"{', '.join(arguments)}, all by name"
        if problem := _arity(user, name, (), {**arguments, **extra}, expected):
            yield problem
            return
    result, error = _call(partial(function or default_compute_score, **arguments))
    if isinstance(error, DropRollout):
        yield Finding(CHECK, "ok", f"compute_score drops a made-up rollout: {one_line(str(error))}")
    elif error is not None:
        yield _raised(name if function else "verl's compute_score", truth, error, str(path or ""))
    else:
        yield _scored(result)


def _scored(result: Any) -> Finding:
    try:
        score, _ = read_score(result)
    except MTGRPOError as error:
        certain = not isinstance(result, int | float) and not isinstance(result, Mapping | None)
        return from_error(CHECK, error, status="fail" if certain or result is None else "warn")
    return Finding(CHECK, "ok", f"compute_score gives the text of a made-up rollout {score:g}")


def _no_truth(setup: Setup) -> Finding | None:
    """Return a failure if a row has no ground truth for a reward function."""
    for number, row in enumerate(setup.rows):
        known = row.get("reward_model")
        if not isinstance(known, Mapping) or "ground_truth" not in known:
            message = f"row {number} of the training questions has no reward_model.ground_truth"
            return Finding(CHECK, "fail", f"{message}: it is {known!r:.80}", "add it: mtgrpo data QUESTIONS --out DIR")
    return None


def _arity(
    function: Callable[..., Any], name: str, given: tuple[Any, ...], named: Mapping[str, Any], expected: str
) -> Finding | None:
    problem = misfit(function, *given, **named)
    if not problem:
        return None
    return Finding(CHECK, "fail", f"the reward function {name} {problem}", f"make it take {expected}")


def _raised(name: str, truth: Any, error: BaseException, file: str) -> Finding:
    message = f"on a made-up rollout of 2 turns and {ROW} {name} raises {one_line(described(error, file))[:300]}"
    try:
        accepted_answers(truth)
    except MTGRPOError:
        message += f" (the ground truth is {truth!r:.60}, a {type(truth).__name__})"
    fix = "if a real rollout could cause this, fix it: each error loses a rollout with its group"
    return Finding(CHECK, "warn", message, fix)


def _call(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return a function's result, awaited if necessary, and its error; it runs in a thread without an event loop."""
    result: Any = None
    raised: BaseException | None = TimeoutError(f"no answer within {LIMIT_S:g} s")

    def work() -> None:
        nonlocal result, raised
        try:
            found = function()
            result = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
            raised = None
        except BaseException as error:
            raised = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return result, raised


async def _awaited(found: Any) -> Any:
    return await found


def made_up(setup: Setup, truth: Any) -> Transcript:
    """Return a rollout of two turns in the run's format: a call whose result contains the answer, then the answer."""
    spoken = str(setup.get(f"{MULTI_TURN}.format"))
    rules = FORMATS.get(spoken, HERMES)
    tool = setup.tools[0] if setup.tools else Tool("search", None, {}, True)
    try:
        answer = accepted_answers(truth)[0]
    except MTGRPOError:
        answer = str(truth)
    parameters = (tool.schema or {}).get("function", {}).get("parameters", {})
    arguments = json.dumps(dict.fromkeys(parameters.get("required") or ["query"], "the question"))
    call, result = _call_text(rules, tool.name, arguments), f"Doc 1 (Title: made up) {answer}"
    thought = f"<{rules.thought}>I know it now.</{rules.thought}>" if rules.thought else ""
    said = f"{thought}<answer>{answer}</answer>"
    documents = (Passage("1", "made up", answer, 1.0),) if tool.searches else ()
    key = str(setup.get("data.prompt_key") or "prompt")
    prompt = setup.rows[0].get(key) if setup.rows else None
    return Transcript(
        turns=(
            Turn(call, (0, 20), (ToolCall(tool.name, arguments, result=result, documents=documents, latency_s=0.1),)),
            Turn(said, (40, 60)),
        ),
        end_reason="answered",
        prompt=tuple(prompt) if isinstance(prompt, list) else (),
        max_turns=int(setup.get(f"{MULTI_TURN}.max_assistant_turns") or 0),
        format=spoken,
    )


def _call_text(rules: TextFormat, name: str, arguments: str) -> str:
    key = "args" if rules.name == "mtgrpo_xml" else "arguments"
    inside = f'{{"name": "{name}", "{key}": {arguments}}}' if rules.json_call else "the question"
    thought = f"<{rules.thought}>I have to look.</{rules.thought}>" if rules.thought else ""
    return f"{thought}<{rules.call}>{inside}</{rules.call}>"
