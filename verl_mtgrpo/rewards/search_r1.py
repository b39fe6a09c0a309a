"""Pay Search-R1's rewards, which train the baselines of the paper's second study (arXiv 2505.11821 v2, section 6.1).

Both pay a rollout once, for its outcome. No turn earns anything by itself, so ``reward.turn.pay`` changes nothing.

``search_r1_em`` (PPO-OR, GRPO-OR; arXiv 2503.09516)::

    R^O = 1 if the answer is an exact match, else 0

``search_r1_format`` (PPO-MR, GRPO-MR; arXiv 2505.15117, section 4.1)::

                   right   wrong   no answer
    valid          1.0     0.2
    not valid      0.8     0.1     0.0

This follows PeterGriffinJin/Search-R1 @a14dc3a, verl/utils/reward_score/qa_em.py and qa_em_format.py, with the
parameters of scripts/nq_hotpotqa/v0.3/train_{ppo,grpo}_format.sh: structure_format_score 0.2, final_format_score 0.1.
Their third parameter, retrieval_score, is 0 in these scripts, so a passage with the answer pays nothing; it is measured
as ``tool/hit``.

Differences from that code, on purpose:

- It reads the whole text: prompt, turns and results. Here only the model's text can be an answer, not a passage or a
  question that contains ``<answer>``, and tags inside a passage do not make a rollout invalid.
- Its prompt ends with the example ``<answer> Beijing </answer>``, which it takes for the answer of a rollout that gives
  none: such a rollout earns 0.1 there (1 and 0.8 if the gold answer is Beijing), and 0 here, as in its table.
- An answer of which SQuAD's normal form leaves nothing ("the") is wrong, even if the gold answer is of this kind.
- It allows one search per turn, so a turn with several calls is not valid here.
"""

from __future__ import annotations

import re
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
from verl_mtgrpo.rewards.formats import ANSWER, TextFormat, share_well_formed, text_format
from verl_mtgrpo.rewards.transcript import Transcript, TurnRewards

RIGHT, STRUCTURE, ANSWERED = 1.0, 0.2, 0.1
"""Search-R1's ``score``, ``structure_format_score`` and ``final_format_score``."""


def search_r1_em(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Score one rollout by exact match alone: 1.0 or 0.0, whatever its format.

    Args:
        transcript: The rollout, in a format with rules for turns (:data:`~.formats.FORMATS`).
        ground_truth: ``reward_model.ground_truth`` of the row.
    """
    components = _measured(transcript, ground_truth)
    return _at_the_end(transcript, RIGHT if components["outcome/em"] else 0.0, components)


def search_r1_format(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Score one rollout by exact match and by the form of the whole, as in the table above.

    Args:
        transcript: The rollout, in a format with rules for turns (:data:`~.formats.FORMATS`).
        ground_truth: ``reward_model.ground_truth`` of the row.
    """
    components = _measured(transcript, ground_truth)
    valid = bool(components["outcome/valid_sequence"])
    if components["outcome/em"]:
        outcome = RIGHT if valid else RIGHT - STRUCTURE
    elif valid:
        outcome = STRUCTURE
    else:
        outcome = ANSWERED if last_answer(whole_text(transcript)) is not None else 0.0
    return _at_the_end(transcript, outcome, components)


def whole_text(transcript: Transcript) -> str:
    """Return the model's turns as one text, with an empty result for each tool answer.

    Results are left empty so that nothing in a passage can open or close a tag.
    """
    tag = text_format(transcript.format).result
    pieces = list[str]()
    for turn in transcript.turns:
        pieces += [turn.text, *(f"\n\n<{tag}></{tag}>\n\n" for call in turn.tool_calls if call.seen)]
    return "".join(pieces)


def is_valid_sequence(text: str, rules: TextFormat) -> bool:
    """Return True if the rollout is (thought, search, result) any number of times, then thought and answer only.

    This is Search-R1's state machine of the same name. There may be white space between the tags, and anything or
    nothing inside them. In a format without tags for thoughts, free text may replace a thought.

    Args:
        text: The result of :func:`whole_text`.
        rules: The format, with its tags.
    """
    thought = [] if rules.thought is None else _pair(rules.thought)
    call, answer = _pair(rules.call), _pair(ANSWER)
    tags = [tag for tag in (rules.thought, rules.call, rules.result, ANSWER) if tag is not None]
    expected, end, done = [*thought], 0, False
    for mark in re.finditer(f"</?(?:{'|'.join(map(re.escape, tags))})>", text):
        tag, outside = mark.group(), text[end : mark.start()]
        may_be_free = not expected and not thought
        if not expected:  # after the thought: a search and its result, or the answer
            expected = [*call, *_pair(rules.result), *thought] if tag == call[0] else [*answer]
        is_open = not tag.startswith("</")
        if done or tag != expected.pop(0) or (is_open and not may_be_free and outside.strip()):
            return False
        end, done = mark.end(), tag == answer[1]
    return done and not text[end:].strip()


def _pair(tag: str) -> list[str]:
    return [f"<{tag}>", f"</{tag}>"]


def _measured(transcript: Transcript, ground_truth: Any) -> dict[str, float | None]:
    accepted, rules = accepted_answers(ground_truth), text_format(transcript.format)
    text = whole_text(transcript)
    answer, searchable = last_answer(text), searchable_answers(accepted)
    results = [result for turn in transcript.turns for result in turn.results]
    texts, calls = [turn.text for turn in transcript.turns], transcript.max_parallel_calls
    return {
        **hit_components(any(contains(result, searchable) for result in results), searchable),
        "outcome/em": float(exact_match(answer, accepted)),
        "outcome/contains": float(contains(answer, accepted)),
        "outcome/f1": f1(answer, accepted),
        "outcome/format": share_well_formed(texts, rules, calls),
        "outcome/valid_sequence": float(is_valid_sequence(text, rules)),
    }


def _at_the_end(transcript: Transcript, outcome: float, components: dict[str, float | None]) -> TurnRewards:
    return TurnRewards(turns=(0.0,) * len(transcript.turns), outcome=outcome, components=components)
