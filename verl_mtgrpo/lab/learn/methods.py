"""Name methods as training does: an estimator, its settings, and what is paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from torch import Tensor

from verl_mtgrpo.credit import ESTIMATORS, method_title
from verl_mtgrpo.errors import ConfigError, CreditInputError
from verl_mtgrpo.lab.learn.rollouts import Walks
from verl_mtgrpo.lab.learn.task import Task
from verl_mtgrpo.plain_yaml import read_yaml

BASELINES: Mapping[str, tuple[str, str]] = {"grpo_or": ("mt_grpo", "outcome"), "grpo_mr": ("mt_grpo", "merged")}
"""The paper's baselines: estimator and what is paid. Where only the last turn is paid, ``mt_grpo`` is ``grpo``."""

DEFAULT = ("grpo_or", "grpo_mr", "mt_grpo", "turn_rloo")


@dataclass(frozen=True)
class Method:
    """An estimator together with what is paid.

    Attributes:
        name: What people write.
        estimator: Its name in the registry.
        pay: One of :data:`~.rollouts.PAY`.
        settings: Knobs that differ from their defaults.
    """

    name: str
    estimator: str
    pay: str = "turns"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Return its name in tables and figures."""
        critic = ", exact values" if "values" in ESTIMATORS[self.estimator].fields else ""
        settings = "".join(f", {key}={value}" for key, value in self.settings.items())
        return f"{method_title(self.name.partition(':')[0])}{critic}{settings}"

    @property
    def compares_rollouts(self) -> bool:
        """Return True if its baseline needs other rollouts of the same prompt, and nothing beyond them."""
        return ESTIMATORS[self.estimator].compares_rollouts

    def advantages(self, task: Task, logits_LP: Tensor, walks: Walks, mask: Tensor, group_B: Tensor) -> Tensor:
        """Return the advantage of each token, ``(B, D)``, 0 behind the end of a rollout."""
        record = ESTIMATORS[self.estimator]
        fields = {name: self._field(name, task, logits_LP, walks) for name in record.fields}
        rewards = walks.response(walks.paid_BD(self.pay))
        advantages = record(rewards, mask, group_B, **fields, **self.settings)[0]
        at = walks.position_BD.clamp(max=advantages.shape[1] - 1)
        return advantages.gather(1, at).masked_fill(walks.node_BD < 0, 0.0)

    def _field(self, name: str, task: Task, logits_LP: Tensor, walks: Walks) -> Tensor:
        if name not in ("values", "values_after"):
            raise ConfigError(
                f"the estimator {self.estimator} asks for {name!r}",
                expected="rewards, mask and groups, or a critic's values: a task of the laboratory has no more",
            )
        # The exact values, which a critic would have to learn, are known here.
        value_LN, answer_LN2 = (one.float() for one in task.values(logits_LP))
        learner_B = torch.arange(len(walks.node_BD)) // (len(walks.node_BD) // len(value_LN))
        at = learner_B[:, None], walks.node_BD.clamp(min=0)
        return walks.response(value_LN[at] if name == "values" else answer_LN2[(*at, walks.yes_BD.long())])


def method(spec: str) -> Method:
    """Return the method ``NAME`` or ``NAME:knob=value,knob=value``.

    NAME is a registered estimator, which is paid turn by turn, or one of :data:`BASELINES`.

    Raises:
        ConfigError: no such method or knob.
    """
    name, _, rest = spec.partition(":")
    estimator, pay = BASELINES.get(name, (name, "turns"))
    if estimator not in ESTIMATORS:
        raise ConfigError(f"--estimators {name!r} is unknown", expected=f"all, or some of {', '.join(names())}")
    if not ESTIMATORS[estimator].takes_rollouts:
        on_trees = "node_path" in ESTIMATORS[estimator].fields
        raise ConfigError(
            f"--estimators {name!r} compares {'branches of trees' if on_trees else 'outputs of roles'}, and the "
            "policies that learn here sample chains",
            expected=f"all, or some of {', '.join(names())}",
            fix="mtgrpo lab trees measures it on trees" if on_trees else "",
        )
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        knob, equals, value = part.partition("=")
        if not equals or knob not in ESTIMATORS[estimator].knobs:
            raise ConfigError(
                f"--estimators {spec!r}: {part!r} is no setting of {name}",
                expected=f"knob=value, with a knob of {', '.join(ESTIMATORS[estimator].knobs) or 'none'}",
            )
        try:
            settings[knob] = read_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--estimators {spec!r}: {knob} cannot be read: {error}") from error
    found = Method(spec, estimator, pay, settings)
    try:  # an estimator checks its settings when it is called
        ESTIMATORS[estimator](*_one_token(), **{f: torch.zeros(1, 1) for f in ESTIMATORS[estimator].fields}, **settings)
    except (CreditInputError, TypeError) as error:
        raise ConfigError(f"--estimators {spec!r}: {error}") from error
    return found


def methods(specs: Sequence[str]) -> list[Method]:
    """Return the methods of ``specs``; ``all`` stands for every baseline and estimator."""
    wanted = [name for spec in specs for name in (names() if spec == "all" else [spec])]
    return [method(spec) for spec in dict.fromkeys(wanted)]


def names() -> list[str]:
    """Return the names of all methods: the baselines, and the estimators that compare chains."""
    return [*BASELINES, *(name for name, record in ESTIMATORS.items() if record.takes_rollouts)]


def _one_token() -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
