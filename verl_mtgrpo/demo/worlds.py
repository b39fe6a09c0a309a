"""The worlds that the demo can train in: what the policy knows by heart, and how it searches at the start."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl_mtgrpo.demo.assets import AssetSettings
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.demo.warmup_demos import Habits
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import WorldSize


@dataclass(frozen=True)
class DemoWorld:
    """A setting of the demo.

    Attributes:
        about: What happens in it, for ``--help``.
        assets: The encyclopedia, its questions, and the policy's habits.
        steps: Training steps, unless the user asks for others.
    """

    about: str
    assets: AssetSettings = field(default_factory=AssetSettings)
    steps: int = DemoSettings.steps


PAPER = "paper"

# Only these numbers differ: model, warm-up, rewards and every setting of the training are the same in both.
WORLDS = {
    PAPER: DemoWorld("the policy knows a third of the answers by heart and searches clumsily, as in the paper's runs"),
    "easy": DemoWorld(
        "it knows a quarter and searches better, so that the outcome reward alone teaches it to search",
        AssetSettings(
            size=WorldSize(famous_per_kind=7, famous_share=0.28),
            habits=Habits(broken_call=0.1, vague_query=0.25, wrong_query=0.25, careless=0.4),
            warmup=WarmupSettings(drill_steps=480),
        ),
        steps=30,
    ),
    "clumsy": DemoWorld(
        "it knows half and hardly ever searches well, so that rewards merged into the outcome may not be enough either",
        AssetSettings(
            # Fewer questions, so that the famous facts suffice for so large a share of them.
            size=WorldSize(train_questions=512, famous_share=0.6),
            habits=Habits(broken_call=0.6, vague_query=0.45, wrong_query=0.45, careless=0.9),
        ),
    ),
}
