"""Check the config alone: do its parts fit together, and do turns and results have enough room?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from verl_mtgrpo.credit import ESTIMATORS
from verl_mtgrpo.doctor.findings import Finding, from_error, one_line
from verl_mtgrpo.doctor.models import has_critic, hub_folder, looks_local
from verl_mtgrpo.doctor.registries import ESTIMATOR, unknown_names
from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup
from verl_mtgrpo.doctor.versions import (
    SGLANG_WITH_TOKENIZER,
    TESTED_VERL,
    missing_engine,
    sglang_repeats_prompts,
    verl_version,
)
from verl_mtgrpo.errors import ConfigError, MTGRPOError
from verl_mtgrpo.integration.advantage.fields import builds_our_buffer
from verl_mtgrpo.integration.advantage.kl_in_reward import INSTEAD, kl_noise_of_verls
from verl_mtgrpo.integration.advantage.knobs import is_ours, try_knobs
from verl_mtgrpo.integration.compat import check_compatible
from verl_mtgrpo.integration.intent import check_preset
from verl_mtgrpo.integration.parts import RAW_LOOPS, check_parts, uses_turns
from verl_mtgrpo.integration.preflight import OF_ESTIMATOR, check_rewards, group_of_one
from verl_mtgrpo.integration.rollout.cutting import raw_agent_needs_tags, routed_experts_are_not_cut
from verl_mtgrpo.integration.settings import estimator_settings, trainer_turn_settings, turn_reward_settings
from verl_mtgrpo.rewards.formats import CUT_FORMATS

SHORT_RESULT = 64
"""A limit in characters below which tool results are nearly useless."""


def compatible(setup: Setup) -> Iterator[Finding]:
    """Yield whether the installed verl has everything that this package overrides; an untested version only warns."""
    check_compatible()
    found = verl_version()
    if found == TESTED_VERL:
        yield Finding("compat", "ok", f"verl {found} is the version that verl-mtgrpo is tested with")
        return
    message = f"verl {found} has the names that verl-mtgrpo overrides, but the version that it is tested with is "
    fix = "watch the first steps: turn/count, rollouts_total/* and tool/used have to be there; or install that version"
    yield Finding("compat", "warn", f"{message}{TESTED_VERL}", fix)


def parts(setup: Setup) -> Iterator[Finding]:
    """Yield whether agent loop, reward manager and tool fit together."""
    if not uses_turns(setup.config):
        fix = "add 'hydra.searchpath=[pkg://verl_mtgrpo.config]' +mtgrpo=mt_grpo (doctor and train: --preset mt_grpo)"
        message = "nothing of verl-mtgrpo is in this command line: it trains as verl does, with one reward per rollout"
        yield Finding("parts", "warn", message, fix)
        return
    check_parts(setup.config)
    loop, manager = setup.get(f"{ROLLOUT}.agent.default_agent_loop"), setup.get("reward.reward_manager.name")
    spoken = setup.get(f"{MULTI_TURN}.format")
    yield Finding("parts", "ok", f"agent loop {loop} speaking {spoken}, reward manager {manager}")


def estimator(setup: Setup) -> Iterator[Finding]:
    """Yield whether the estimator, its knobs, the trainer mode and the group size fit together."""
    name, n = setup.get("algorithm.adv_estimator"), setup.get(f"{ROLLOUT}.n")
    mode = setup.get("trainer.v1.trainer_mode")
    problems = _names(setup)
    for check in OF_ESTIMATOR:
        try:
            check(setup.config)
        except MTGRPOError as error:
            problems.append(from_error("estimator", error))
            if check is check_preset and ESTIMATOR.key in error.found:
                break  # the other checks would complain about the group's knobs, which are for another estimator
    problems += _own_estimator(setup, name) if not problems else []
    if name not in ESTIMATORS and (alone := group_of_one(setup.config)):  # verl accepts that for its estimators
        problems.append(from_error("estimator", alone, status="warn"))
    noise = kl_noise_of_verls(setup.config)
    if noise and uses_turns(setup.config):
        problems.append(Finding("estimator", "warn", noise, INSTEAD))
    yield from problems or [_estimator_line(setup, name, n, mode)]


def _names(setup: Setup) -> list[Finding]:
    """Return findings about names that verl's registries do not have; they only warn if the name may come later."""
    found = []
    for unknown in unknown_names(setup.config):
        if unknown.certain:
            found.append(setup.absent("estimator", unknown.message, unknown.fix))
        else:
            message = f"{unknown.message} (in this process; another one of the run loads more)"
            found.append(Finding("estimator", "warn", message, unknown.fix))
    return found


def _own_estimator(setup: Setup, name: str) -> list[Finding]:
    """Return a warning, not a failure, if an estimator of the user's fails on our batch; it may need another kind."""
    if name not in ESTIMATORS or is_ours(name):
        return []
    try:
        try_knobs(name, estimator_settings(name, setup.get("algorithm")))
    except MTGRPOError as error:
        return [from_error("estimator", error, status="warn")]
    return []


def _estimator_line(setup: Setup, name: str, n: int, mode: str) -> Finding:
    turn = setup.get("algorithm.turn") if name in ESTIMATORS else None
    knobs = f" ({', '.join(f'{key} {value}' for key, value in turn.items())})" if turn else ""
    return Finding("estimator", "ok", f"{name}{knobs}, {n} rollout{'s' * (n != 1)} per prompt, trainer mode {mode}")


def rewards(setup: Setup) -> Iterator[Finding]:
    """Yield what is paid, and whether the reward settings fit together."""
    if setup.get("reward.reward_manager.name") != "mtgrpo":
        yield Finding("rewards", "skip", "the reward manager is not mtgrpo")
        return
    check_rewards(setup.config)
    settings = turn_reward_settings(setup.get("reward"))
    yield Finding("rewards", "ok", f"preset {settings.preset}, pay {settings.pay}, outcome from {settings.outcome}")


def batch(setup: Setup) -> Iterator[Finding]:
    """Yield how many questions a step and an update have."""
    size, mini = setup.get("data.train_batch_size"), setup.get("actor_rollout_ref.actor.ppo_mini_batch_size")
    n = setup.get(f"{ROLLOUT}.n")
    if not size or not mini:
        return
    message = f"{size} questions x {n} rollouts per step, updates of {mini} questions"
    rest = size % mini
    if rest:
        message += f": verl fills the last one with {(mini - rest) * n} copies that are not trained on"
        fix = "choose data.train_batch_size as a multiple of actor_rollout_ref.actor.ppo_mini_batch_size"
        yield Finding("batch", "warn", message, fix)
    else:
        yield Finding("batch", "ok", message)


def turns(setup: Setup) -> Iterator[Finding]:
    """Yield how many turns there may be, and whether the format of calls and the room for them fit."""
    problems = [*_turn_limits(setup), *_result_limit(setup), *_format(setup), *_context(setup)]
    most = setup.get(f"{MULTI_TURN}.max_assistant_turns")
    length = setup.get(f"{ROLLOUT}.response_length")
    said = f"at most {most} turns" if most else "any number of turns"
    yield from problems or [Finding("turns", "ok", f"{said} in {length} tokens, tool results included")]


def _turn_limits(setup: Setup) -> Iterator[Finding]:
    key = f"{MULTI_TURN}.max_assistant_turns"
    if setup.get(key) == 1:
        message = f"{key}=1: verl stops after the first turn, before it looks for a tool call, so no tool is ever used"
        yield Finding("turns", "fail", message, f"set {key} to 2 (one call, then the answer) or more")


def _result_limit(setup: Setup) -> Iterator[Finding]:
    """Warn of a short limit for results of the user's tools; the search tool's results are measured elsewhere."""
    key = f"{MULTI_TURN}.max_tool_response_length"
    if setup.get(f"{MULTI_TURN}.function_tool_path") and int(setup.get(key) or 0) < SHORT_RESULT:
        message = f"{key}={setup.get(key)}: verl cuts every tool result at so many characters"
        yield Finding("turns", "warn", message, f"set {key} to what the longest result needs (our groups: 4096)")


def _format(setup: Setup) -> Iterator[Finding]:
    from verl.experimental.agent_loop.tool_parser import ToolParser

    key, engine = f"{MULTI_TURN}.format", setup.get(f"{ROLLOUT}.name")
    spoken, loop = setup.get(key), setup.get(f"{ROLLOUT}.agent.default_agent_loop")
    known = sorted(ToolParser._registry)  # pyright: ignore[reportPrivateUsage]  (verl has no public list of them)
    if spoken not in known:
        message = f"{key}={spoken}: verl has no tool parser of this name"
        yield Finding("turns", "fail", message, f"set {key} to one of {', '.join(known)}")
        return
    if loop in RAW_LOOPS and spoken not in CUT_FORMATS:
        yield from_error("turns", raw_agent_needs_tags(spoken))
    if spoken in CUT_FORMATS and setup.get(f"{ROLLOUT}.enable_rollout_routing_replay"):
        yield from_error("turns", routed_experts_are_not_cut(spoken))
    if spoken in CUT_FORMATS and engine == "sglang" and setup.get(f"{ROLLOUT}.skip_tokenizer_init") is not False:
        message = f"sglang cannot stop at the closing tags of {spoken} without a tokenizer: it writes on, then is cut"
        yield Finding("turns", "warn", message, f"set {ROLLOUT}.skip_tokenizer_init=False")


def _context(setup: Setup) -> Iterator[Finding]:
    most, prompt = setup.get(f"{ROLLOUT}.max_model_len"), setup.get(f"{ROLLOUT}.prompt_length")
    response = setup.get(f"{ROLLOUT}.response_length")
    if not most or most >= prompt + response:
        return
    message = f"{ROLLOUT}.max_model_len={most} is less than a prompt of {prompt} and a response of {response} tokens"
    fix = f"set {ROLLOUT}.max_model_len={prompt + response} or more"
    yield Finding("turns", "fail" if most <= prompt else "warn", message, fix)


def watch(setup: Setup) -> Iterator[Finding]:
    """Yield which guards and dumps the run has (``trainer.turn``)."""
    settings = trainer_turn_settings(setup.get("trainer"))
    _check_waiting(setup)
    guards = "guards on" if settings.guards.enable else "guards off"
    folder = setup.get("trainer.rollout_data_dir")
    dump = f"rollouts into {folder}" if folder else "no rollouts written (trainer.rollout_data_dir)"
    yield Finding("watch", "ok", f"preflight {settings.preflight}, {guards}, {dump}")


def _check_waiting(setup: Setup) -> None:
    """Raise ``ConfigError`` if our replay buffer cannot use the settings for waiting."""
    from verl_mtgrpo.integration.trainer.waiting import StallGuard

    where = "trainer.v1.sampler.sampler_kwargs"
    if not builds_our_buffer(setup.config):
        return
    StallGuard(setup.get(f"{where}.stall_timeout_s"))  # raises if the value is unusable
    interval = setup.get(f"{where}.poll_interval")
    if interval is not None and not (isinstance(interval, int | float) and interval >= 0):
        raise ConfigError(f"{where}.poll_interval is {interval!r}", expected="a number of seconds")


def verls_own(setup: Setup) -> Iterator[Finding]:
    """Yield the result of verl's own checks of a config."""
    import contextlib
    import io

    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.config import validate_config

    said = io.StringIO()
    config = setup.config
    critic = str(setup.get("critic.model.path") or "")
    trained = has_critic(config)
    if trained and not Path(critic).is_dir() and not looks_local(critic) and not hub_folder(critic):
        # transformers would ask the hub for it, which takes a minute without a network
        message = f"verl's own checks load the config of the critic, and {critic} is not on this machine"
        yield Finding("verl", "skip", message, f"run `hf download {critic}` first")
        return
    try:
        with contextlib.redirect_stdout(said):
            validate_config(config, need_reference_policy(config), trained)
    except Exception as error:  # verl raises AssertionError, ValueError or TypeError, and Hydra wraps them
        cause = error.__cause__ or error
        if isinstance(cause, OSError):  # transformers needs the files of the critic's model for this
            yield Finding("verl", "skip", f"verl's own checks need the model's files: {one_line(str(cause))[:120]}")
            return
        if isinstance(cause, ImportError):  # the engine, which another node may have; the check engine says more
            yield Finding("verl", "skip", f"verl's own checks cannot be run here: {one_line(str(cause))[:120]}")
            return
        message = f"verl refuses the config: {one_line(str(cause) or repr(cause))}"
        yield Finding("verl", "fail", message, "fix the setting that the message names")
        return
    yield Finding("verl", "ok", "verl's own checks of the config pass")


def engine(setup: Setup) -> Iterator[Finding]:
    """Yield whether the rollout engine is installed and works as configured."""
    name = setup.get(f"{ROLLOUT}.name")
    if not name:  # verl's config says ???
        fix = f"set {ROLLOUT}.name=vllm or sglang (on a CPU use the group +mtgrpo_cpu=default, or --cpu)"
        yield Finding("engine", "fail", f"{ROLLOUT}.name is not set, but verl has no default for it", fix)
        return
    problem = missing_engine(name)
    if problem:
        yield setup.of_machine("engine", problem.message, problem.fix)
        return
    cpu = setup.get("trainer.device") == "cpu" or name == "hf_cpu"
    if cpu and os.environ.get("VERL_PLATFORM") != "cpu":
        message = (
            "the config is for a CPU, but the environment variable VERL_PLATFORM is not cpu, so verl asks for a GPU"
        )
        yield Finding("engine", "fail", message, "put VERL_PLATFORM=cpu before the command (mtgrpo train --cpu does)")
    elif name == "sglang" and not setup.get(f"{ROLLOUT}.skip_tokenizer_init") and (old := sglang_repeats_prompts()):
        message = f"sglang {old} returns tokens of the prompt as generated ones if it has a tokenizer"
        fix = f"install {SGLANG_WITH_TOKENIZER} or newer (pip install 'verl[sglang]' installs what verl pins), or set "
        fix += f"{ROLLOUT}.skip_tokenizer_init=True (turns are then cut after the engine has generated further)"
        yield setup.absent("engine", message, fix)
    else:
        yield Finding("engine", "ok", f"{name} on {setup.get('trainer.device')}")
