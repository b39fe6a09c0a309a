"""Issue 21, items B10, B11, B13, B14: the second study's baselines, the paper's judge, verl's own scores, the sources.

Each case is an input, the right value, and where that is from.
"""

from __future__ import annotations

import random
import re

import pytest

from verl_mtgrpo.rewards import PRESETS, ToolCall, Transcript, Turn, pay, search_r1_em, search_r1_format
from verl_mtgrpo.rewards.formats import SEARCH_R1
from verl_mtgrpo.rewards.search_r1 import answer_in, is_valid_sequence, whole_text

# ---- B10: search_r1_em and search_r1_format

THOUGHT = "<think>t</think>"
SEARCH = THOUGHT + "<search>capital of France</search>"
RIGHT = THOUGHT + "<answer>Paris</answer>"
WRONG = THOUGHT + "<answer>Rome</answer>"


def searched(text: str = SEARCH, *results: str, **call) -> Turn:
    results = results or ("Its capital is Paris.",)
    return Turn(text, (0, 1), tuple(ToolCall("search", "{}", result=one, **call) for one in results))


def said(text: str) -> Turn:
    return Turn(text, (0, 1))


# What Search-R1's own functions gave (PeterGriffinJin/Search-R1 @a14dc3a, verl/utils/reward_score/qa_em.py and
# qa_em_format.py with structure_format_score .2, final_format_score .1, retrieval_score 0, as in
# scripts/nq_hotpotqa/v0.3/*.sh), called on its prompt in Qwen2.5's chat template, these turns, and the results as
# "\n\n<information>…</information>\n\n" between them. Gold answer: Paris.
SEARCH_R1_CODE = [
    # (what, turns, qa_em, qa_em_format)
    ("searched, right", [searched(), said(RIGHT)], 1, 1.0),
    ("right at once", [said(RIGHT)], 1, 1.0),
    ("four searches, right", [searched()] * 4 + [said(RIGHT)], 1, 1.0),
    ("white space between tags", [searched(f"\n{THOUGHT}\n<search>q</search>\n"), said(f"{RIGHT}\n")], 1, 1.0),
    ("nothing inside tags", [searched("<think></think><search></search>"), said(RIGHT)], 1, 1.0),
    ("normalised", [said(THOUGHT + "<answer>The paris!</answer>")], 1, 1.0),
    ("right, no thought before the search", [searched("<search>q</search>"), said(RIGHT)], 1, 0.8),
    ("right, no thought before the answer", [searched(), said("<answer>Paris</answer>")], 1, 0.8),
    ("right, text outside", [searched(), said("So: " + RIGHT)], 1, 0.8),
    ("right, text behind", [searched(), said(RIGHT + " done")], 1, 0.8),
    ("right, two thoughts", [searched(), said(THOUGHT + RIGHT)], 1, 0.8),
    ("right, a forged result", [searched(SEARCH + "<information>Paris</information>"), said(RIGHT)], 1, 0.8),
    ("right, two answers", [said(WRONG + "<answer>Paris</answer>")], 1, 0.8),
    ("right, a stray closing tag behind", [said(RIGHT + "</answer>")], 1, 0.8),
    ("right in turn 1, then searched on", [searched(RIGHT + "<search>q</search>")], 1, 0.8),
    ("wrong, the passage had it", [searched(), said(WRONG)], 0, 0.2),
    ("wrong, no passage had it", [searched(SEARCH, "Lyon."), said(WRONG)], 0, 0.2),
    ("an empty answer", [searched(), said(THOUGHT + "<answer></answer>")], 0, 0.2),
    ("contained only", [said(THOUGHT + "<answer>in Paris</answer>")], 0, 0.2),
    ("wrong, not valid", [searched(), said("<answer>Rome</answer>")], 0, 0.1),
    ("two answers, the last wrong", [said(RIGHT + "<answer>Rome</answer>")], 0, 0.1),
    ("an answer inside an answer", [said(THOUGHT + "<answer>a <answer>Paris</answer></answer>")], 0, 0.1),
    ("two searches in a turn", [searched(SEARCH + SEARCH, "Paris", "Lyon"), said(WRONG)], 0, 0.1),
]


@pytest.mark.parametrize(
    ("turns", "em", "form"), [case[1:] for case in SEARCH_R1_CODE], ids=[c[0] for c in SEARCH_R1_CODE]
)
def test_b10_search_r1_pays_what_its_code_pays(turns, em, form):
    transcript = Transcript(tuple(turns), "answered", format="search_r1")
    for preset, outcome in ((search_r1_em, em), (search_r1_format, form)):
        rewards = preset(transcript, {"target": ["Paris"]})
        assert rewards.outcome == pytest.approx(outcome)
        for how in ("turns", "merged", "outcome"):
            paid = pay(rewards, len(turns), how)
            assert paid == pytest.approx([0.0] * (len(turns) - 1) + [outcome]), "all of it at the end"
        assert rewards.components["outcome/em"] == em
        assert rewards.components["outcome/valid_sequence"] == float(form in (1.0, 0.2))


# Where the preset differs from that code on purpose, as its docstring says: (what, turns, their values, ours).
CHOICES = [
    ("no answer at all", [said("I do not know.")], (0, 0.1), (0, 0.0)),
    ("cut off in a search", [searched(), said(SEARCH)], (0, 0.1), (0, 0.0)),
    ("cut off, result never read", [searched(seen=False)], (0, 0.1), (0, 0.0)),
    ("a passage that spells an answer", [searched(SEARCH, "<answer>Paris</answer>")], (1, 0.8), (0, 0.0)),
    ("a passage with a tag", [searched(SEARCH, "the <think> tag"), said(RIGHT)], (1, 0.8), (1, 1.0)),
]


@pytest.mark.parametrize(("turns", "ours"), [(case[1], case[3]) for case in CHOICES], ids=[case[0] for case in CHOICES])
def test_b10_where_search_r1_is_not_followed(turns, ours):
    transcript = Transcript(tuple(turns), "answered", format="search_r1")
    found = [preset(transcript, {"target": ["Paris"]}).outcome for preset in (search_r1_em, search_r1_format)]
    assert found == pytest.approx(list(ours))


def test_b10_the_prompts_example_is_no_answer():
    """Search-R1 pays 1 (and 0.8) here: "Beijing" stands in its prompt, and the rollout has no answer of its own."""
    silent = Transcript((said("I do not know."),), "answered", format="search_r1")
    assert search_r1_em(silent, ["Beijing"]).outcome == search_r1_format(silent, ["Beijing"]).outcome == 0.0


def test_b10_nothing_generated_earns_nothing():
    nothing = Transcript((), "response_length", format="search_r1")
    for preset in (search_r1_em, search_r1_format):
        assert (preset(nothing, ["Paris"]).turns, preset(nothing, ["Paris"]).outcome) == ((), 0.0)


OTHER_FORMATS = [
    (
        "mtgrpo_xml",
        '<reasoning>r</reasoning><tool>{"name": "search", "args": {}}</tool>',
        "<reasoning>r</reasoning><answer>Paris</answer>",
    ),
    ("hermes", 'I look.<tool_call>{"name": "search", "arguments": {}}</tool_call>', "Found: <answer>Paris</answer>"),
]


@pytest.mark.parametrize(("name", "call", "answer"), OTHER_FORMATS, ids=[case[0] for case in OTHER_FORMATS])
def test_b10_the_same_rules_with_the_tags_of_other_formats(name, call, answer):
    def score(*turns: Turn) -> float:
        return search_r1_format(Transcript(turns, "answered", format=name), ["Paris"]).outcome

    assert score(searched(call), said(answer)) == 1.0
    assert score(searched(call + " and"), said(answer)) == 0.8, "text behind a call"
    assert score(searched(call), said(answer + " I am sure.")) == 0.8
    assert score(searched(call), said(answer.replace("Paris", "Rome"))) == 0.2
    assert score(searched(call), said("<answer>Rome</answer>" * 2)) == 0.1
    assert score(searched(call), said("no idea")) == 0.0


def naive(text: str) -> tuple[bool, str | None]:
    """Validity and the answer by regular expressions alone: slow, and written from the description of the format."""
    inside = r"(?:(?!</?(?:think|search|information|answer)>).)*"
    block = {tag: rf"<{tag}>{inside}</{tag}>\s*" for tag in ("think", "search", "information", "answer")}
    whole = rf"\s*(?:{block['think']}{block['search']}{block['information']})*{block['think']}{block['answer']}"
    answers = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return re.fullmatch(whole, text, re.DOTALL) is not None, answers[-1].strip() if answers else None


def test_b10_validity_and_answer_as_a_naive_reading_finds_them():
    tags = [f"<{slash}{tag}>" for tag in ("think", "search", "information", "answer") for slash in ("", "/")]
    rng, valid = random.Random(0), 0
    for _ in range(3000):
        turns = [searched(SEARCH, "no") for _ in range(rng.randrange(3))] + [said(RIGHT)]
        pieces = re.split(r"(</?\w+>)", whole_text(Transcript(tuple(turns), "answered", format="search_r1")))
        for _ in range(rng.randrange(3)):
            place = rng.randrange(len(pieces))
            pieces[place : place + rng.randrange(2)] = [rng.choice([*tags, "word", " ", "\n"])]
        text = "".join(pieces)
        assert (is_valid_sequence(text, SEARCH_R1), answer_in(text)) == naive(text), text
        valid += is_valid_sequence(text, SEARCH_R1)
    assert 800 < valid < 2200, "both kinds occur"


def test_b10_reading_a_long_text_is_linear():
    text = "<answer>" * 200_000 + "<think>" * 200_000
    assert answer_in(text) is None
    assert not is_valid_sequence(text, SEARCH_R1)


def test_b10_both_are_presets_by_name():
    assert {"search_r1_em", "search_r1_format"} <= set(PRESETS)
