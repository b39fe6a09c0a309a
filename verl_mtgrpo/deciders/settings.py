"""Settings of deciders."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from verl_mtgrpo.settings import Number, Settings


class DecideSettings(Settings):
    """``trainer.turn.decide``: how the agent loop ``mtgrpo_decide_agent`` decides a turn before it is taken."""

    by: str = "none"
    """``none``: the policy's turn is taken, as in ``mtgrpo_tool_agent``; ``best``: of several turns the one of the
    highest score; ``posterior``: one drawn by softmax(score / alpha); ``retry``: a turn below ``threshold`` is sent
    back with ``feedback``; or a class of your own: ``package.module:Class`` or ``file.py:Class``."""
    when: Literal["always", "training", "validation"] = "always"
    """In which rollouts turns are decided; in the others the policy's turn is taken."""
    score: str = ""
    """Who scores a turn: ``judge`` (that of ``reward.turn.judge.model``), or a function of your own,
    ``package.module:fn`` or ``file.py:fn``, which gets the transcript so far and the proposed turn."""
    candidates: int = Field(default=4, ge=1)
    """``best`` and ``posterior``: turns that the policy proposes in each state."""
    alpha: Number = Field(default=1.0, gt=0)
    """``posterior``: the temperature, in units of the score. Towards 0 it is ``best``."""
    threshold: Number | None = None
    """``retry``: a turn with a lower score is rejected; null: none is."""
    retries: int = Field(default=2, ge=1)
    """``retry``: how often a turn is asked for again. The last attempt stands."""
    feedback: str = "This step scores {score:.2f}, and {threshold:.2f} is needed. Take a better one."
    """``retry``: what the model reads after a rejected attempt."""
    rejected: Literal["mask", "train"] = "mask"
    """``retry``: ``mask``: nothing is learned from rejected attempts; ``train``: each is a turn of its own, which
    ``penalty`` is taken from."""
    penalty: Number = Field(default=1.0, ge=0)
    """``retry`` with ``rejected=train``: taken from the reward of each rejected attempt."""
    seed: int = 0
    """Seed of the draws of ``posterior``: together with step, question, rollout and turn it decides."""
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Keyword arguments of a class of your own. New keys need a ``+``."""
