"""Pay the paper's first rewards: tool use and hits per turn, and the answer as outcome.

The values are those of arXiv 2505.11821 v1 and its code (SiliangZeng/Multi-Turn-RL-Agent @7dbdd08,
verifiers/rubrics/tool_rubric.py and triviaqa_rubric.py, verifiers/parsers/xml_parser.py). With at most one search, the
turn reward is at most 0.7::

    R^I_k = 0.2 · (calls of turn k that were carried out / calls attempted in turn k)
          + 0.5 · [turn k's results are the first that hold an accepted answer]         k < K
    R^O   = 0.5 · [an accepted answer occurs in the last <answer>] + 1.0 · [it equals one]
          + 0.2 · (format) + 0.2 · (tag count)

In the paper's format, ``mtgrpo_xml``, format and tag count are those of its code (:func:`~.formats.v1_format_score`,
:func:`~.formats.v1_tag_score`), and the outcome is at most 1.9. They score the tags of this format and mean nothing in
others: there, format is the share of well-formed turns, there is no tag count, and the outcome is at most 1.7. In
verl's formats for which we have no rules (``qwen3_coder``, ``gpt-oss``, …) neither is defined, and the outcome is at
most 1.5.

The last turn K is paid R^O alone, even if it still searches; in the paper's code, too, a call counts only if a message
with its result follows. So if room is scarce, searching until the response is full pays no better than a wrong answer:
both end with the format's share of R^O. A call at ``max_assistant_turns``, which verl never reads, earns the same.

Differences from the paper's code, on purpose:

- With more than one search, the code pays one share of carried-out calls and looks at the first result, once for the
  whole rollout. We pay execution in every turn, and a hit once, in the turn in which it first happens.
- A failed call is not a hit. The code reads the text of an error like a result, so an error that repeats the query
  pays.
- If a message has several answers, the last one counts, as everywhere in this package (Search-R1's rule); in the code
  it is the first. In the format ``mtgrpo_xml`` a turn ends with its first closing tag, so there is never a second.
- A yes or no in a result is not a hit, and a short answer has to be a whole word (:mod:`~.answers`); the code finds
  "no" in "Norway".
- White space around an accepted answer is ignored, and an empty accepted answer matches nothing; in the code, the
  answer "Paris" does not contain " Paris", and every answer contains "".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verl_mtgrpo.rewards.answers import (
    accepted_answers,
    f1,
    hit_components,
    is_exact,
    last_answer,
    mentions,
    searchable_answers,
)
from verl_mtgrpo.rewards.formats import FORMATS, MTGRPO_XML, share_well_formed, v1_format_score, v1_tag_score
from verl_mtgrpo.rewards.transcript import Transcript, Turn, TurnRewards

EXECUTION, HIT, CONTAINS, EXACT, FORMAT, TAGS = 0.2, 0.5, 0.5, 1.0, 0.2, 0.2


def paper_v1(transcript: Transcript, ground_truth: Any) -> TurnRewards:
    """Score one rollout.

    Args:
        transcript: The rollout. Only the model's text counts as its answer, and only a tool's result counts as a hit;
            text that merely looks like a result earns nothing.
        ground_truth: ``reward_model.ground_truth`` of the row.
    """
    accepted = accepted_answers(ground_truth)
    answer = last_answer([turn.text for turn in transcript.turns])
    searchable = searchable_answers(accepted)
    hit_turn = first_hit(transcript.turns, searchable)
    turn_rewards = [EXECUTION * execution_rate(turn) + HIT * (k == hit_turn) for k, turn in enumerate(transcript.turns)]
    turn_rewards[-1:] = [0.0] * bool(turn_rewards)  # the last turn is paid R^O alone
    contains, exact = mentions(answer, accepted), is_exact(answer, accepted)
    texts = [turn.text for turn in transcript.turns]
    rules = FORMATS.get(transcript.format)
    own_format = rules is MTGRPO_XML
    calls = transcript.max_parallel_calls
    form = v1_format_score(texts) if own_format else share_well_formed(texts, rules, calls) if rules else None
    tags = v1_tag_score(texts) if own_format else None
    return TurnRewards(
        turns=tuple(turn_rewards),
        outcome=CONTAINS * contains + EXACT * exact + FORMAT * (form or 0.0) + TAGS * (tags or 0.0),
        components={
            **hit_components(hit_turn is not None, searchable),
            "outcome/em": float(exact),
            "outcome/contains": float(contains),
            "outcome/f1": f1(answer, accepted),
            "outcome/format": form,
            "outcome/tags": tags,
        },
    )


def execution_rate(turn: Turn) -> float:
    """Return the share of the turn's calls that were carried out and whose result the model saw; 0.0 without calls."""
    if not turn.tool_calls:
        return 0.0
    return sum(call.ok and call.seen for call in turn.tool_calls) / len(turn.tool_calls)


def first_hit(turns: Sequence[Turn], searchable: Sequence[str]) -> int | None:
    """Return the index of the first turn in whose results the model saw an accepted answer, ignoring case."""
    for k, turn in enumerate(turns):
        if any(mentions(result, searchable) for result in turn.results):
            return k
    return None
