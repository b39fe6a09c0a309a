"""Environments that an agent acts in: an episode is a rollout, each turn of the model a step with its own reward."""

from verl_mtgrpo.environments.protocol import Environment, Observation, without_thought

__all__ = ["Environment", "Observation", "without_thought"]
