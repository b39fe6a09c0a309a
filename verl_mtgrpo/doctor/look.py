"""Check the environment first and the command line then, since a faulty environment explains later failures.

verl may be missing or broken, so modules that import it are imported only when they are needed.
"""

from __future__ import annotations

import os

from verl_mtgrpo.doctor import compose
from verl_mtgrpo.doctor.compose import CommandLine
from verl_mtgrpo.doctor.findings import Finding, any_failed, from_error
from verl_mtgrpo.doctor.plugin import entry_point, external_modules
from verl_mtgrpo.doctor.processes import registered
from verl_mtgrpo.doctor.versions import check_versions
from verl_mtgrpo.errors import ConfigError

SERVICE_S = 5.0
"""Longest time in seconds that a search service may take to answer here."""


def look(line: CommandLine, *, quick: bool, with_ray: bool) -> list[Finding]:
    """Return the findings about this environment and, if there is one, about the command line.

    Args:
        line: The user's command line.
        quick: Start no process, neither Ray nor a fresh Python.
        with_ray: Start a Ray to check one of its workers.
    """
    found = [*check_versions(), *entry_point(), *external_modules()]
    if any_failed(found):
        return [*found, Finding("config", "skip", "not checked until this is fixed")]
    if not quick:
        found += registered(with_ray=with_ray)
    if line.overrides or line.name is not None:
        return found + _of_run(line)
    hint = "to check one: mtgrpo doctor -- <what comes after main_ppo>"
    return [*found, *_index_alone(), Finding("config", "skip", "no command line was given", hint)]


def _of_run(line: CommandLine) -> list[Finding]:
    from verl_mtgrpo.doctor.checks import examine
    from verl_mtgrpo.doctor.setup import Setup

    try:
        config = compose.compose_config(line)
    except ConfigError as error:
        return [from_error("config", error), Finding("parts", "skip", "nothing more can be checked without a config")]
    composed = Finding("config", "ok", f"verl's {line.name or 'ppo_trainer'} with {len(line.overrides)} overrides")
    return [composed, *examine(Setup(config, patience_s=SERVICE_S))]


def _index_alone() -> list[Finding]:
    """Open the index that the environment or --index names, as the packaged search tool would."""
    from omegaconf import OmegaConf

    from verl_mtgrpo.doctor.checks import examine, named
    from verl_mtgrpo.doctor.setup import MULTI_TURN, ROLLOUT, Setup
    from verl_mtgrpo.integration.hydra.resolvers import asset
    from verl_mtgrpo.integration.parts import LOOPS

    if not os.environ.get("MTGRPO_INDEX"):
        return [Finding("index", "skip", "neither --index nor MTGRPO_INDEX names an index")]
    config = OmegaConf.create()
    OmegaConf.update(config, f"{ROLLOUT}.agent.default_agent_loop", LOOPS[0])
    OmegaConf.update(config, f"{MULTI_TURN}.tool_config_path", asset("tools/search_tool.yaml"))
    return examine(Setup(config, patience_s=SERVICE_S), named("index"))
