"""The worlds that the demo can train in: what is asked, what the policy knows by heart, how it searches at first."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl_mtgrpo.demo.assets import AssetSettings
from verl_mtgrpo.demo.lake import LakeSettings
from verl_mtgrpo.demo.training import DemoSettings
from verl_mtgrpo.demo.warmup_demos import Habits
from verl_mtgrpo.demo.warmup_settings import WarmupSettings
from verl_mtgrpo.demo.world import WorldSize


@dataclass(frozen=True)
class DemoWorld:
    """A setting of the demo.

    Attributes:
        about: What happens in it, for ``--help``.
        assets: The encyclopedia, its questions, and the policy's habits; or the boards of a lake.
        training: How the policy is trained; the user may ask for another number of steps.
    """

    about: str
    assets: AssetSettings | LakeSettings = field(default_factory=AssetSettings)
    training: DemoSettings = field(default_factory=DemoSettings)


PAPER = "paper"

# What is not named here is the same in all: the model, how many rollouts a step has, learning rates.
WORLDS = {
    PAPER: DemoWorld("the policy knows a third of the answers by heart and searches clumsily, as in the paper's runs"),
    "easy": DemoWorld(
        "it knows a quarter and searches better, so that the outcome reward alone teaches it to search",
        AssetSettings(
            size=WorldSize(famous_per_kind=7, famous_share=0.28),
            habits=Habits(broken_call=0.1, vague_query=0.25, wrong_query=0.25, careless=0.4),
            warmup=WarmupSettings(drill_steps=480, habit_steps=150),
        ),
        DemoSettings(steps=30),
    ),
    "hops": DemoWorld(
        "most questions need two or three searches, one after the other, and each search has a price",
        AssetSettings(
            size=WorldSize(famous_per_kind=4, famous_share=0.15, hop_shares={2: 0.6, 3: 0.25}, possessive=True),
            habits=Habits(
                search=0.8, broken_call=0.03, vague_query=0.1, wrong_query=0.1, second_search=0.9, careless=0.4
            ),
            warmup=WarmupSettings(habit_steps=150, chain_drills=0.3),
        ),
        # Three searches and the answer; a response holds three results.
        DemoSettings(steps=60, response_length=320, assistant_turns=4, rewards="paper_v2"),
    ),
    "lake": DemoWorld(
        "no search: gymnasium's FrozenLake in words, where each turn is a step with its own reward (needs gymnasium)",
        LakeSettings(),
        # The straight way takes six turns. A response holds the observations of all turns, and takes three times
        # as long to train on as a search; so half of the questions per step.
        DemoSettings(
            steps=40,
            prompts=8,
            prompt_length=96,
            response_length=448,
            assistant_turns=12,
            rewards="env",
            environment="frozen_lake",
        ),
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
