"""Issue 21, rewards: each case with its item's number, the right value and where that value is from.

"code" is SiliangZeng/Multi-Turn-RL-Agent @7dbdd08 (rubrics/triviaqa_rubric.py and parsers/xml_parser.py), "qa_em" is
PeterGriffinJin/Search-R1 @a14dc3a (verl/utils/reward_score/qa_em.py): values of both are what these files gave when
they were run on the same text. "paper" is arXiv 2505.11821 v2.
"""

from __future__ import annotations

import pytest

from tests.regressions.rollouts import UNSEEN, found, rollout
from verl_mtgrpo.rewards import Transcript, paper_v1
from verl_mtgrpo.rewards.answers import last_answer

JSON_CALL = '{"name": "search", "arguments": {"query": "q"}}'
CALLS = {"hermes": f"<tool_call>{JSON_CALL}</tool_call>", "mtgrpo_xml": f"<tool>{JSON_CALL}</tool>"}
THOUGHT = {"hermes": "", "mtgrpo_xml": "<reasoning>r</reasoning>", "search_r1": "<think>t</think>"}
SEARCH = "<think>t</think><search>q</search>"
ANSWER = "<think>t</think><answer>Paris</answer>"


# ---- 25: paper_v1, as the paper's code scores it

XML_CALL = '<reasoning>look</reasoning>\n<tool>{"name": "search", "args": {"query": "q"}}</tool>'
XML_ANSWER = "<reasoning>r</reasoning>\n<answer>Paris</answer>"
# name: messages (the model's, then a result, …), the code's turn reward and outcome
CODE = {
    "right": ([XML_CALL, "Its capital is Paris.", XML_ANSWER], 0.7, 1.9),
    "miss, wrong": ([XML_CALL, "Lyon.", XML_ANSWER.replace("Paris", "London")], 0.2, 0.4),
    "a failed call": ([XML_CALL, "Error: Invalid JSON format", XML_ANSWER], 0.0, 1.9),
    "a message below 0 takes from the mean of tag scores": (
        [XML_CALL, "Paris", "<reasoning>r</reasoning><answer>Paris" + "<answer>" * 6 + "</answer>"],
        0.7,
        0.75,
    ),
    "a mean below 0 is 0": (["<answer>" * 6 + "Paris</answer>"], 0.0, 0.62),
    "an answer in an answer": (["<reasoning>r</reasoning><answer>a <answer>Paris</answer>"], 0.0, 0.85),
    "closed twice": (["<reasoning>r</reasoning><answer>Paris</answer></answer>"], 0.0, 1.85),
    "closed once more later": (["<reasoning>r</reasoning><answer>Paris</answer> so </answer>"], 0.0, 1.85),
    "white space around the answer": (["<reasoning>r</reasoning><answer> PARIS </answer>"], 0.0, 1.9),
    "a last turn that still searches": ([XML_CALL, "Paris", XML_CALL], 0.7, 0.4),
    "only a search": ([XML_CALL], 0.0, 0.4),
    "no tags": (["Paris"], 0.0, 0.04),
}


def as_transcript(messages: list[str]) -> Transcript:
    results = [found(text, ok=not text.startswith("Error:")) for text in messages[1::2]]
    texts = messages[::2]
    calls = [(result,) for result in results]
    calls += [(UNSEEN,) if "</tool>" in texts[-1] else ()]
    return rollout(*zip(texts, calls, strict=True), form="mtgrpo_xml")


@pytest.mark.parametrize("name", CODE)
def test_25_paper_v1_pays_what_the_papers_code_pays(name: str):
    messages, turn, outcome = CODE[name]
    rewards = paper_v1(as_transcript(messages), ["Paris"])
    assert sum(rewards.turns) == pytest.approx(turn)
    assert rewards.outcome == pytest.approx(outcome)


@pytest.mark.parametrize(
    ("messages", "accepted", "here"),
    [
        # the code: 0.5 for "no" in "Norway"
        ([XML_CALL, "Norway", XML_ANSWER], ["no"], 0.2),
        # the code: 0.5 for the error's text
        ([XML_CALL, "Error: Unknown tool 'Paris'", XML_ANSWER], ["Paris"], 0.0),
        # the code: 0.2, since "its capital is paris." does not contain " paris "
        ([XML_CALL, "Its capital is Paris.", XML_ANSWER], [" Paris "], 0.7),
        # the code: 0.7, since everything contains ""
        ([XML_CALL, "Lyon", XML_ANSWER], ["", "Paris"], 0.2),
    ],
)
def test_25_where_paper_v1_differs_on_purpose(messages: list[str], accepted: list[str], here: float):
    """Each is listed in paper_v1's docstring."""
    assert sum(paper_v1(as_transcript(messages), accepted).turns) == pytest.approx(here)


def test_25_many_tags_take_linear_time():
    import time

    start = time.process_time()
    assert last_answer(["<answer>" * 100_000]) is None
    assert last_answer(["</answer>" * 100_000]) is None
    assert time.process_time() - start < 1.0
