"""The working in words; the numbers are those of tests/report/test_explain.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.made import transcript
from verl_mtgrpo.report.rollouts import DumpedRollout
from verl_mtgrpo.report.why import Why, explain_group, in_words, signed


def rollout(rewards: tuple[float, ...], **more: object) -> DumpedRollout:
    said = transcript("Vel", searches=["x"] * (len(rewards) - 1))
    return DumpedRollout("g", said, rewards, ("Vel",), {}, **more)  # type: ignore[arg-type]


README = [rollout((0.7, 1.0)), rollout((0.2, 0.0)), rollout((0.5,))]
ADVANTAGES = [(2.109, 1.0), (-1.277, -1.0), (-0.832,)]


def test_the_readmes_example() -> None:
    why = explain_group(README, ADVANTAGES, "mt_grpo")
    assert why[0][0].words == (
        "Turn 1 was paid 0.70; the 3 rollouts that got this far (1 ended there: counted as 0) averaged 0.30 ± 0.36: "
        "+1.11. "
        "The last turn was paid 1.00, outcome included; the 3 rollouts averaged 0.50 ± 0.50: +1.00. Together +2.11."
    )
    assert (
        why[0][1].words == "The last turn was paid 1.00, outcome included; the 3 rollouts averaged 0.50 ± 0.50: +1.00."
    )
    assert why[2][0].words == (
        "The rollout ended with turn 1, so nothing was paid there for going on; the 3 rollouts that got this far "
        "averaged 0.30 ± 0.36: −0.83. The last turn was paid 0.50, outcome included; the 3 rollouts averaged "
        "0.50 ± 0.50: 0.00. "
        "Together −0.83."
    )
    assert all(one.adds_up for some in why for one in some)


def test_small_numbers_have_the_digits_with_which_a_reader_can_do_the_sum() -> None:
    """Seven rollouts with a turn 2, one of them paid there: mean 0.2/7, std 0.2/√7. 0.03 ± 0.08 would give +2.13."""
    group = [rollout((0.0, 0.2, 0.5)), *[rollout((0.0, 0.0, 0.5))] * 6]
    turn = (0.2 - 0.2 / 7) / (0.2 / 7**0.5)
    why = explain_group(group, [(turn, turn, 0.0), *[(-0.378, -0.378, 0.0)] * 6], "mt_grpo")
    assert "Turn 2 was paid 0.20; the 7 rollouts that got this far averaged 0.029 ± 0.076: +2.27." in why[0][0].words
    assert "Turn 2 was paid 0.00; the 7 rollouts that got this far averaged 0.03 ± 0.08: −0.38." in why[1][0].words
    assert why[0][0].adds_up


def test_a_working_that_does_not_fit_says_so() -> None:
    why = explain_group(README, [(2.5, 1.0), *ADVANTAGES[1:]], "mt_grpo")
    assert why[0][0].adds_up is False and "does not give the +2.50 that was trained on" in why[0][0].words
    assert why[0][1].adds_up is True


def test_a_critic_of_states_and_turns_is_quoted() -> None:
    """The example of docs/turn-critic.md: V 0.8 and 0.6, Q 0.7 and 0.9."""
    one = rollout((0.5, 1.0), values=(0.8, 0.6), values_after=(0.7, 0.9), settings={"whiten": False})
    (said,) = explain_group([one], [(-0.1, 0.3)], "turn_td")
    assert said[0].words == (
        "When turn 1 was written, the critic expected 0.70; where the turn began it expected 0.80: −0.10."
    )
    assert [why.adds_up for why in said] == [True, True]
    whitened = replace(one, settings={"whiten": True})
    (said,) = explain_group([whitened], [(-0.7, 0.7)], "turn_td")
    assert said[1].adds_up is None, "whitened over the batch"
    assert "The critic expected 0.60 at its first token. When the turn was written, the critic expected 0.90." in (
        said[1].words
    )


def test_what_the_estimator_saw_counts() -> None:
    """With a KL penalty in the reward the estimator saw other rewards than were paid."""
    group = [rollout((0.0,), credited=(1.0,)), rollout((0.0,), credited=(-1.0,))]
    (((why,), (_,))) = explain_group(group, [(0.7071,), (-0.7071,)], "grpo")
    assert why.adds_up and "was paid 1.00" in why.words and "with the KL penalty" in why.words


def test_dense_rewards_are_told_apart_from_paid_ones() -> None:
    dense = {"implicit": (0.25, -0.5), "information_gain": (0.5, 0.0)}
    group = [rollout((0.5, 1.0), credited=(1.25, 0.5), dense=dense), rollout((0.5, 1.0), credited=(0.5, 1.0))]
    # turn_rloo: 1.75 - 1.5 from turn 1 on, 0.5 - 1.0 at turn 2
    (first, second), _ = explain_group(group, [(0.25, -0.5), (-0.25, 0.5)], "turn_rloo")
    assert first.adds_up and second.adds_up
    assert "here implicit +0.250, information_gain +0.500, beside the 0.50 paid" in first.words
    assert "here implicit −0.500, information_gain 0.000, beside the 1.00 paid" in second.words
    assert "KL" not in first.words + second.words
    more = [rollout((0.5, 1.0), credited=(1.0, 0.5), dense=dense), group[1]]
    assert "with the KL penalty" in explain_group(more, [(0.0, -0.5), (0.0, 0.5)], "turn_rloo")[0][0].words


def test_a_dropped_rollout() -> None:
    group = [rollout((1.0,)), rollout((0.0,)), rollout((0.0,), dropped="no answer in 20 s")]
    why = explain_group(group, [(0.7071,), (-0.7071,), (0.0,)], "mt_grpo")
    assert why[2] == [Why((), "Left out of the update: no answer in 20 s.", None)]
    assert why[0][0].adds_up, "it is in nobody's statistics"


def test_an_estimator_with_a_critic_gets_the_groups_statistics() -> None:
    group = [rollout((0.5, 1.0), values=(-0.25, 0.75)), rollout((0.1, 0.2), values=(0.0, 0.0))]
    (first, _), _ = explain_group(group, [(0.1, 0.2), (0.3, 0.4)], "gae")
    assert first == Why(
        (),
        "This turn was paid 0.50; the 2 rollouts that got this far averaged 0.30. From here on 1.50 was paid; they "
        "averaged 0.90. The critic expected −0.25 at its first token.",
        None,
    )


def test_every_registered_estimator_is_told_in_words() -> None:
    from verl_mtgrpo.credit import ESTIMATORS

    assert all(record.words and in_words(name) == record.words for name, record in ESTIMATORS.items())
    assert in_words("rloo").startswith("RLOO: "), "verl's own"
    assert "does not know" in in_words("mine")


@pytest.mark.parametrize(("value", "text"), [(1.414, "+1.41"), (-0.5, "−0.50"), (0.0, "0.00"), (-0.001, "0.00")])
def test_signs(value: float, text: str) -> None:
    assert signed(value) == text
