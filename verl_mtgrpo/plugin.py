"""The module that verl loads through the ``verl.plugins`` entry point: it registers our parts and nothing else.

verl loads this module while ``import verl`` is still running, in every process that imports verl. So it
imports no verl module and nothing heavy; each part is registered when verl itself imports the registry
it belongs to (post-import hooks). Loading it twice does no harm.

verl logs a plugin that fails to load at DEBUG and continues, and the run then dies after the model is
loaded with "Unknown advantage estimator". Therefore every failure here is logged at ERROR first.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("verl_mtgrpo.plugin")

# (module that holds a registry, our module that registers with it on import)
HOOKS = (
    ("verl.trainer.ppo.core_algos", "verl_mtgrpo.integration.advantage.estimators"),
    ("verl.trainer.ppo.core_algos", "verl_mtgrpo.integration.advantage.policy_losses"),
    ("verl.experimental.agent_loop.tool_parser", "verl_mtgrpo.integration.rollout.tool_parsers"),
    ("verl.experimental.agent_loop.tool_agent_loop", "verl_mtgrpo.integration.rollout.agent_loop"),
    ("verl.experimental.reward_loop.reward_manager", "verl_mtgrpo.integration.reward_manager"),
    ("verl.trainer.ppo.v1", "verl_mtgrpo.integration.trainer.trainer"),
    ("omegaconf", "verl_mtgrpo.integration.hydra.resolvers"),
    ("hydra", "verl_mtgrpo.integration.hydra.search_path"),
    ("hydra", "verl_mtgrpo.doctor.start_check"),
)

_registered = False


def register() -> None:
    """Install the post-import hooks of this process; a second call does nothing.

    Raises:
        Whatever made it fail, after logging it at ERROR: verl swallows plugin errors.
    """
    global _registered
    if _registered:
        return
    try:
        import wrapt

        for verl_module, our_module in HOOKS:
            wrapt.register_post_import_hook(_importer(our_module), verl_module)
        if os.environ.get("VERL_PLATFORM") == "cpu":
            importlib.import_module("verl_mtgrpo.cpu").register()
    except Exception as error:
        _report(error, "the plugin")
        raise
    _registered = True


def _importer(our_module: str) -> Callable[[Any], None]:
    def hook(_module: Any) -> None:
        try:
            importlib.import_module(our_module)
        except Exception as error:
            _report(error, our_module)
            raise

    return hook


def _report(error: Exception, what: str) -> None:
    message = (
        f"verl_mtgrpo could not load {what}: {type(error).__name__}: {error}. "
        "Its estimators, agent loop, reward manager and tools will be unknown to verl. "
        f"Fix this environment ({sys.executable}): pip install --upgrade verl-mtgrpo, then check with "
        '`python -c "import verl_mtgrpo.plugin"`.'
    )
    logger.error(message, exc_info=error)


register()
