"""Run the checks of :mod:`.checks` in the process that starts a run, before Ray and before any model is loaded.

The reward manager checks the run as well, but it is one of the parts that can be forgotten, and it is created after the
model. Hydra calls the callbacks under ``hydra.callbacks`` when a run starts; ours is added for every program that loads
verl, through the store in which Hydra keeps its defaults. It looks at the config and leaves runs alone that use nothing
of ours.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.experimental.callback import Callback

from verl_mtgrpo.errors import ConfigError, MTGRPOError
from verl_mtgrpo.launch.caught import stop_if_asked

importlib.import_module("hydra.conf")  # stores the defaults that we extend below
logger = logging.getLogger(__name__)


class StartCheck(Callback):
    """End the program with a message if the parts of the run do not fit together."""

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Check the composed config, which Hydra passes.

        Raises:
            SystemExit: The run would not do what it says. Hydra turns other exceptions of callbacks into warnings.
        """
        if "actor_rollout_ref" not in config or "algorithm" not in config:  # not verl's trainer
            return
        stop_if_asked()
        try:
            failures = _failures(config)
        except MTGRPOError as error:
            failures = [str(error)]
        if failures:
            name = f"{ConfigError.__module__}.{ConfigError.__qualname__}"
            raise SystemExit("\n".join(f"{name}: {failure}" for failure in failures))


def _failures(config: Any) -> list[str]:
    """Return the failures of a run that uses something of ours, and log the warnings."""
    from verl_mtgrpo.doctor.checks import checks_at_start, examine
    from verl_mtgrpo.doctor.setup import Setup
    from verl_mtgrpo.integration.parts import uses_turns
    from verl_mtgrpo.integration.settings import trainer_turn_settings

    if not uses_turns(config):
        return []
    level = trainer_turn_settings(config.get("trainer")).preflight
    checks = checks_at_start(level)
    found = examine(Setup(config, starts=True), checks)
    for finding in found:
        if finding.status == "warn":
            logger.warning("%s: %s", finding.check, finding)
    failed = [finding for finding in found if finding.status == "fail"]
    of_machine = {check.name for check in checks if check.needs == "machine"}
    hint = " (if only other machines can see it, skip such checks with trainer.turn.preflight=config)"
    return [f"{finding}{hint if finding.check in of_machine else ''}" for finding in failed]


def _extend_hydras_defaults() -> None:
    store = ConfigStore.instance()
    defaults = store.load("hydra/config.yaml")
    defaults.node.callbacks["mtgrpo"] = {"_target_": f"{__name__}.StartCheck"}
    store.store(group="hydra", name="config", node=defaults.node, package=defaults.package, provider="verl-mtgrpo")


_extend_hydras_defaults()
