"""Pay the paper's second rewards in their verifiable form: hits, format and a price on searching per turn.

The values are those of arXiv 2505.11821 v2, section 5.2 (its code is not released)::

    R^I_k = 0.3 · [turn k's results hold an accepted answer]
          + (0.1 if turn k is well formed, else -0.2) - 0.1 · (searches up to and with turn k)      k < K
    R^O   = 1.0 right and well formed | 0.2 well formed, wrong | -1.0 malformed

R^I is paid for the turns before the last one. The last turn is paid R^O alone (Eq. 9), so a last turn that still
searches earns -1. The paper leaves some points open, which we decide as follows. *Right* is SQuAD's exact match (as in
Search-R1's evaluation). Results *hold* an answer if it is a normalised substring, or a whole word if it is short, and
they never hold a yes or no (:mod:`~.answers`). Every turn with a hit is paid, even if it finds the same passage again.
A call that failed or was not carried out is a search too. A turn with several calls is well formed if the format allows
several and verl carries out as many.
"""

from __future__ import annotations

from typing import Any

from verl_mtgrpo.rewards.answers import (
    accepted_answers,
    contains,
    exact_match,
    f1,
    hit_components,
    last_answer,
    searchable_answers,
)
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
    searchable, calls = searchable_answers(accepted), transcript.max_parallel_calls
    hits = [any(contains(result, searchable) for result in turn.results) for turn in transcript.turns]
    searches, turn_rewards = 0, list[float]()
    for turn, hit in zip(transcript.turns[:-1], hits, strict=False):
        searches += len(turn.tool_calls)
        well_formed = WELL_FORMED if rules.well_formed_call(turn.text, calls) else MALFORMED
        turn_rewards.append(HIT * hit + well_formed + PER_SEARCH * searches)
    texts = [turn.text for turn in transcript.turns]
    answer = last_answer(texts[-1:])
    right = exact_match(answer, accepted)
    well_formed_answer = bool(texts) and rules.well_formed_answer(texts[-1])
    return TurnRewards(
        turns=(*turn_rewards, 0.0) if texts else (),
        outcome=(RIGHT if right else WRONG) if well_formed_answer else MALFORMED_ANSWER,
        components={
            **hit_components(any(hits), searchable),
            "outcome/em": float(right),
            "outcome/contains": float(contains(answer, accepted)),
            "outcome/f1": f1(answer, accepted),
            "outcome/format": share_well_formed(texts, rules, calls),
            "outcome/well_formed": float(well_formed_answer),
        },
    )
