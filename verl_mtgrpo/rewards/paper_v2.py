"""The paper's second reward set, verifiable form: hits, format and a price on searching per turn.

Values: arXiv 2505.11821 v2, from two secondary sources that agree (its code is not released)::

    R^I_k = 0.3 · [turn k's results hold an accepted answer]
          + (0.1 if turn k is well formed, else -0.2) - 0.1 · (searches up to and with turn k)
    R^O   = 1.0 right and well formed | 0.2 well formed, wrong | -1.0 malformed

R^I is paid for turns that are not the last one and for a last turn that still searched; the last turn's own
format is what R^O is about. Where the sources are silent, chosen here: *right* is SQuAD's exact match
(as in Search-R1's evaluation); results *hold* an answer as a normalised substring; every turn with a hit is
paid, again also for the same passage; a call that failed is a search too.
"""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.rewards.answers import accepted_answers, contains, exact_match, f1, last_answer
from verl_mtgrpo.rewards.formats import share_well_formed, text_format
from verl_mtgrpo.rewards.transcript import Transcript, TurnRewards

HIT, WELL_FORMED, MALFORMED, PER_SEARCH = 0.3, 0.1, -0.2, -0.1
RIGHT, WRONG, MALFORMED_ANSWER = 1.0, 0.2, -1.0


def paper_v2(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Score one rollout.

    Args:
        transcript: The rollout, in a format with rules for turns (:data:`~.formats.FORMATS`).
        ground_truth: ``reward_model.ground_truth`` of the row.

    Returns:
        R^I_k from -0.2 - 0.1·searches to 0.3, and R^O of -1.0, 0.2 or 1.0.
    """
    accepted, rules = accepted_answers(ground_truth), text_format(transcript.format)
    searches, hits, turn_rewards = 0, 0, list[float]()
    for k, turn in enumerate(transcript.turns):
        if not turn.tool_calls and k == len(transcript.turns) - 1:
            turn_rewards.append(0.0)  # the answer: R^O
            continue
        searches += len(turn.tool_calls)
        hit = any(contains(result, accepted) for result in turn.results)
        hits += hit
        well_formed = WELL_FORMED if rules.well_formed_call(turn.text) else MALFORMED
        turn_rewards.append(HIT * hit + well_formed + PER_SEARCH * searches)
    texts = [turn.text for turn in transcript.turns]
    answer = last_answer(texts[-1:])
    right = exact_match(answer, accepted)
    well_formed_answer = bool(texts) and rules.well_formed_answer(texts[-1])
    return TurnRewards(
        turns=tuple(turn_rewards),
        outcome=(RIGHT if right else WRONG) if well_formed_answer else MALFORMED_ANSWER,
        components={
            "tool/hit": float(hits > 0),
            "outcome/em": float(right),
            "outcome/contains": float(contains(answer, accepted)),
            "outcome/f1": f1(answer, accepted),
            "outcome/format": share_well_formed(texts, rules),
            "outcome/well_formed": float(well_formed_answer),
        },
    )
