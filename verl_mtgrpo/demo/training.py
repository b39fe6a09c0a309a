"""All settings of the demo's training runs, in this one place.

``mtgrpo demo`` and ``mtgrpo compare`` train with exactly these; only preset, seed and world differ
(:data:`~verl_mtgrpo.demo.worlds.WORLDS`). What every run on a CPU needs is in the Hydra group ``mtgrpo_cpu``, what
defines the method in ``mtgrpo``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_mtgrpo.demo.stored import stored_settings
from verl_mtgrpo.report.tables import ENVIRONMENT_HEADLINES, HEADLINES


@dataclass(frozen=True)
class DemoSettings:
    """How one demo policy is trained. The README's curve was made with the defaults."""

    # Training steps: tool execution is near 1 well before that, reading takes longer.
    steps: int = 60
    # Questions per step, and rollouts per question: the group within which advantages are computed.
    prompts: int = 16
    rollouts: int = 8
    # Large for RL, right for a model of a million parameters; at 1e-3 tool use rises but exact match collapses.
    lr: float = 3e-4
    # Steps over which it rises from 0. Adam's first steps are as long as any; without this, the luck of the first two
    # batches decided what the policy searches for (decision 0038).
    lr_warmup: int = 10
    # Learning rate of the critic, for methods that have one: it starts from the policy's weights with a new value head.
    critic_lr: float = 1e-3
    # Passes of the critic over the rows of a round. archer has 10, and five rounds: measured on two cores, such a step
    # took 200 s, twenty times as long as one of mt_ppo.
    critic_epochs: int = 1
    # In tokens. A prompt is one question; a response holds a call, its passages and the answer.
    prompt_length: int = 128
    response_length: int = 256
    # Turns of the model: one search, then the answer, as in the paper's first experiments. With more, each
    # executed search earns its execution reward, and the policy learns to search until it may
    # no longer answer: measured with 3 turns, exact match rose to 0.58 in 8 steps and fell to 0.03 in 15.
    assistant_turns: int = 2
    # What is paid: a name that reward.turn.preset may have.
    rewards: str = "paper_v1"
    # The environment that each turn is a step in; empty: turns search. What it pays is reward.turn.preset=env.
    environment: str = ""
    # Sampled validation rollouts per question, so that shares mean the same as in training.
    validation_samples: int = 3
    # Steps between checkpoints: the most that an interrupted run loses.
    save_every: int = 10

    @property
    def headlines(self) -> Mapping[str, str]:
        """The metrics that tables and plots of such a run show, with their names; the first is what it is to learn."""
        return ENVIRONMENT_HEADLINES if self.environment else HEADLINES

    @property
    def validated(self) -> tuple[str, ...]:
        """Metrics without which, in the validations before and after training, a run is not finished."""
        return ("env/outcome",) if self.environment else ("tool/used", "outcome/em")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that a stored run is compared by: other settings make another run."""
        return stored_settings(self, later=("rewards", "environment", "critic_epochs"))

    def overrides(self, *, seed: int) -> list[str]:
        """Return the Hydra overrides for these settings.

        Args:
            seed: Seed of the order of questions and of sampling.
        """
        rollout = "actor_rollout_ref.rollout"
        played = ["+mtgrpo_env=default", f"trainer.turn.environment.name={self.environment}"]
        actor = "actor_rollout_ref.actor"
        return [
            *(played if self.environment else []),
            f"data.seed={seed}",
            f"{rollout}.seed={seed}",
            f"data.train_batch_size={self.prompts}",
            # One optimiser step per training step: the update is on-policy.
            f"{actor}.ppo_mini_batch_size={self.prompts}",
            f"{rollout}.n={self.rollouts}",
            f"{actor}.optim.lr={self.lr:g}",
            f"{actor}.optim.lr_warmup_steps={self.lr_warmup}",
            f"critic.optim.lr={self.critic_lr:g}",
            f"critic.ppo_epochs={self.critic_epochs}",
            f"data.max_prompt_length={self.prompt_length}",
            f"data.max_response_length={self.response_length}",
            f"{rollout}.multi_turn.max_assistant_turns={self.assistant_turns}",
            f"reward.turn.preset={self.rewards}",
            f"{rollout}.val_kwargs.do_sample=True",
            f"{rollout}.val_kwargs.temperature=1.0",
            f"{rollout}.val_kwargs.n={self.validation_samples}",
            f"trainer.total_training_steps={self.steps}",
            # The step count ends the run, never the epochs.
            f"trainer.total_epochs={self.steps}",
            f"trainer.test_freq={self.steps}",
            f"trainer.save_freq={self.save_every}",
            # With 1, verl removes the last checkpoint before the new one is complete: a kill then would start over.
            "trainer.max_actor_ckpt_to_keep=2",
            "trainer.logger=[console,file]",
            "trainer.project_name=mtgrpo_demo",
        ]
