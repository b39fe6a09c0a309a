"""Issue 21, rewards: each case with its item's number, the right value and where that value is from.

"code" is SiliangZeng/Multi-Turn-RL-Agent @7dbdd08 (rubrics/triviaqa_rubric.py and parsers/xml_parser.py), "qa_em" is
PeterGriffinJin/Search-R1 @a14dc3a (verl/utils/reward_score/qa_em.py): values of both are what these files gave when
they were run on the same text. "paper" is arXiv 2505.11821 v2.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.judge_server import JudgeServer
from tests.regressions.rollouts import NOT_CARRIED_OUT, UNSEEN, found, rollout
from tests.report.made import dump_row, rollout_of, write_rows
from tests.rewards.judged import judge
from verl_mtgrpo.data.answerable import AnswerCheck
from verl_mtgrpo.data.questions import Question, read_questions
from verl_mtgrpo.passages import Passage
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.evaluation import Bootstrap, evaluate_dump
from verl_mtgrpo.rewards import ToolCall, Transcript, paper_v1, paper_v2, pay, search_r1_em, search_r1_format
from verl_mtgrpo.rewards.answers import accepted_answers, contains, exact_match, f1, is_exact, last_answer, mentions
from verl_mtgrpo.rewards.formats import FORMATS, HERMES, MTGRPO_XML, SEARCH_R1
from verl_mtgrpo.rewards.measures import charge_repeats, tool_trouble, tool_use

JSON_CALL = '{"name": "search", "arguments": {"query": "q"}}'
CALLS = {"hermes": f"<tool_call>{JSON_CALL}</tool_call>", "mtgrpo_xml": f"<tool>{JSON_CALL}</tool>"}
THOUGHT = {"hermes": "", "mtgrpo_xml": "<reasoning>r</reasoning>", "search_r1": "<think>t</think>"}
SEARCH = "<think>t</think><search>q</search>"
ANSWER = "<think>t</think><answer>Paris</answer>"


# ---- A5: calls that were written and not carried out


def test_a5_calls_that_were_not_carried_out_are_attempts():
    """Paper: executions / calls attempted: 0.2 · 1/2, and the hit 0.5. Both are searches: .3 - .2 - .1 · 2."""
    text = CALLS["hermes"] * 2
    made = rollout((text, (found(), NOT_CARRIED_OUT)), ("<answer>Paris</answer>", ()), form="hermes")
    assert paper_v1(made, "Paris").turns == pytest.approx((0.1 + 0.5, 0.0))
    assert paper_v2(made, "Paris").turns == pytest.approx((0.3 - 0.2 - 0.2, 0.0))
    trouble = tool_trouble(made)
    assert (trouble["tool/calls"], trouble["tool/failures"]) == (2.0, 1.0)
    assert trouble["tool/errors/not_carried_out"] == 1.0
    assert tool_use(made)["tool/success"] == 0.5


@pytest.mark.parametrize("form", ["hermes", "mtgrpo_xml"])
@pytest.mark.parametrize(
    ("written", "limit", "right"), [(1, 1, True), (2, 1, False), (2, 2, True), (3, 2, False), (1, 4, True)]
)
def test_a5_up_to_the_limit_of_calls_a_turn_is_well_formed(form: str, written: int, limit: int, right: bool):
    text = THOUGHT[form] + "\n".join([CALLS[form]] * written)
    rules = FORMATS[form]
    assert rules.well_formed_call(text, limit) is right
    assert rules.well_formed(text, limit) is right
    broken = text.replace('"arguments"', '"argument"', 1)
    assert rules.well_formed_call(broken, limit) is False
    made = rollout((text, (found(),) * written), (THOUGHT[form] + "<answer>Paris</answer>", ()), form=form, limit=limit)
    if form == "hermes":
        assert paper_v1(made, "Paris").components["outcome/format"] == (1.0 if right else 0.5)
    rewards = paper_v2(made, "Paris")
    assert rewards.turns[0] == pytest.approx(0.3 + (0.1 if right else -0.2) - 0.1 * written)
    assert rewards.components["outcome/format"] == (1.0 if right else 0.5)


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (HERMES, CALLS["hermes"] + " and " + CALLS["hermes"]),  # text between two calls
        (HERMES, CALLS["hermes"] * 2 + " done"),
        (HERMES, CALLS["hermes"] + "<answer>Paris</answer>"),
        (MTGRPO_XML, THOUGHT["mtgrpo_xml"] + CALLS["mtgrpo_xml"] + "<tool>q</tool>"),
        (SEARCH_R1, SEARCH + "<search>r</search>"),  # is cut behind the first call: it never has two
    ],
)
def test_a5_what_is_malformed_stays_so(rules, text: str):
    assert not rules.well_formed_call(text, 2)


def test_a5_the_limit_is_in_the_transcript_and_in_the_evaluation(tmp_path: Path):
    text = CALLS["hermes"] * 2
    made = rollout((text, (found(), found())), ("<answer>Vel</answer>", ()), form="hermes", limit=2)
    assert Transcript.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    rows = [dump_row("q", 0, made, [0.0, 0.0], data_source="nq")]
    dump = write_rows(tmp_path / "1.jsonl", rows)
    (got,) = evaluate_dump(dump, label="d", bootstrap=Bootstrap(100, 0)).rows
    assert got.estimates["format"].mean == 1.0


# ---- A8: a last turn that still searches


# turns, what paper_v1 and paper_v2 pay at each. paper_v1: each turn is well formed, 0.2. Paper, Eq. 9: R^I_k, k < K.
CUT_OFF = {
    "its result did not fit": ([(SEARCH, (UNSEEN,))], [0.2], [-1.0]),
    "the generation behind its result was empty": ([(SEARCH, (found(),))], [0.2], [-1.0]),
    "a call that verl could not read": (
        [(SEARCH, (ToolCall("search", "{", ok=False, seen=False, error_kind="bad_arguments"),))],
        [0.2],
        [-1.0],
    ),
    "the second search": ([(SEARCH, (found(),)), (SEARCH, (UNSEEN,))], [0.7, 0.2], [0.3, -1.0]),
}


@pytest.mark.parametrize("name", CUT_OFF)
def test_a8_a_last_turn_that_searches_is_paid_the_outcome_alone(name: str):
    turns, v1, v2 = CUT_OFF[name]
    made = rollout(*turns)
    for function, right in ((paper_v1, v1), (paper_v2, v2)):
        rewards = function(made, "Paris")
        assert pay(rewards, len(turns), "turns") == pytest.approx(right)
        assert pay(rewards, len(turns), "merged") == pytest.approx([*[0.0] * (len(turns) - 1), sum(right)])


def test_a8_searching_until_the_room_is_used_up_pays_no_more_than_a_wrong_answer():
    wrong = ANSWER.replace("Paris", "Rome")
    first = (SEARCH, (found(),))
    for function in (paper_v1, paper_v2):
        searched_on = sum(pay(function(rollout(first, (SEARCH, (UNSEEN,))), "Paris"), 2, "turns"))
        answered = sum(pay(function(rollout(first, (wrong, ())), "Paris"), 2, "turns"))
        assert searched_on <= answered + 1e-9


def test_a8_an_unseen_result_earns_no_execution():
    """One of two results was seen: 0.2 · 1/2."""
    made = rollout((SEARCH, (found("x"), found("x", seen=False))), (ANSWER, ()))
    assert paper_v1(made, "Paris").turns == pytest.approx((0.1, 0.0))


@pytest.mark.network
def test_a8_the_judge_is_not_asked_about_it_and_nothing_is_priced():
    server = JudgeServer()
    try:
        server.scoring(1, outcome=1)
        rewards = judge(server, rollout((SEARCH, (found(),)), (SEARCH, (UNSEEN,))))
        assert rewards.turns == pytest.approx((1 - 0.1, 0.0))
        assert len(server.bodies) == 1, "the first turn; there is no answer to ask about"
    finally:
        server.stop()


def test_a8_nor_is_a_repeated_search():
    made = rollout((SEARCH, (found(repeat=True),)), (SEARCH, (found(seen=False, repeat=True),)))
    assert charge_repeats(made, paper_v1(made, "Paris"), 0.1).turns == pytest.approx((0.6, 0.0))


# ---- B12: yes, no and short answers


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        # field.md R4
        ("Norway lies in northern Europe.", "no", False),
        ("Yesterday", "yes", False),
        ("the untrue story", "true", False),
        ("1978", "7", False),
        ("Unlucky", "UK", False),
        ("El Niño", "Ni", False),  # ñ is a letter, too
        ("No, it is not.", "no", True),
        ("Apollo 7 flew", "7", True),
        ("a 7-year-old boy", "7", True),  # SQuAD's normal form makes "7yearold" of it
        ("the U.S. Army", "US", True),  # and "us" of this
        ("It cost 7.5 million", "7", False),
        ("in 1,978 days", "1", False),
        ("vitamin C", "C.", True),
        ("約7月", "7", True),  # no spaces in this script
        # scripts without spaces: substrings
        ("中国的首都是北京。", "北京", True),
        ("東京都", "京", True),
        # three characters and more: substrings, as in Search-R1's subem_check
        ("a party", "art", True),
        # the rank in front of a passage is no part of it
        ('Doc 7 (Title: "France") Its capital is Paris.', "7", False),
        ('Doc 1 (Title: "France") Louis 7 reigned.', "7", True),
    ],
)
def test_b12_short_answers_are_found_as_whole_words(text: str, accepted: str, right: bool):
    assert contains(text, accepted) is right
    if accepted not in ("US", "C."):  # these two occur in normal form only
        assert mentions(text, accepted) is right


# accepted answers, result, paper_v1's and paper_v2's reward of the turn, tool/hit
HITS = [
    (["no"], "No, Norway lies in northern Europe.", 0.2, 0.0, None),
    (["Yes"], "Yes.", 0.2, 0.0, None),
    ([False], "The statement is false.", 0.2, 0.0, None),
    (["7"], "1978", 0.2, 0.0, 0.0),
    (["7"], "Apollo 7", 0.7, 0.3, 1.0),
    (["no", "Oslo"], "No, Norway lies in northern Europe.", 0.2, 0.0, 0.0),
    (["no", "Oslo"], "Oslo", 0.7, 0.3, 1.0),
    (["北京"], "中国的首都是北京。", 0.7, 0.3, 1.0),
]


@pytest.mark.parametrize(("accepted", "result", "v1", "v2", "hit"), HITS)
def test_b12_every_preset_has_one_notion_of_a_hit(accepted, result: str, v1: float, v2: float, hit: float | None):
    made = rollout((SEARCH, (found(result),)), (ANSWER, ()))
    for function, reward in ((paper_v1, v1), (paper_v2, v2)):
        rewards = function(made, {"target": accepted})
        assert rewards.turns[0] == pytest.approx(reward)
        assert rewards.components["tool/hit"] == hit
        assert rewards.components["tool/hit_undefined"] == float(hit is None)
    for function in (search_r1_em, search_r1_format):
        assert function(made, {"target": accepted}).components["tool/hit"] == hit


def dump(folder: Path, *rollouts: tuple[str, list[str], str]) -> Path:
    rows = []
    for question, accepted, result in rollouts:
        made = rollout_of("x", found(result))
        row = dump_row(question, 0, made, [0.0] * len(made.turns), data_source="nq")
        rows.append({**row, "gts": {"target": accepted}})
    return write_rows(folder / "1.jsonl", rows)


def test_b12_eval_and_report_go_by_it(tmp_path: Path):
    """By hand: of three questions one has no hit rate, of the two others one has a hit: 0.5."""
    path = dump(tmp_path, ("a", ["no"], "Norway, no"), ("b", ["7"], "1978"), ("c", ["7"], "Apollo 7"))
    (got,) = evaluate_dump(path, label="d", bootstrap=Bootstrap(2000, 0)).rows
    assert got.estimates["hit rate"].mean == 0.5
    assert (got.estimates["hit rate"].low, got.estimates["hit rate"].high) == (0.0, 1.0)
    assert got.estimates["tool execution"].mean == 1.0
    assert (got.questions, got.hits_undefined) == (3, 1)
    entries = read_catalog([path]).entries()
    assert [entry.hit for entry in entries] == [None, False, True]


def test_b12_a_set_of_yes_no_questions_has_no_hit_rate(tmp_path: Path):
    path = dump(tmp_path, ("a", ["no"], "no"), ("b", ["yes"], "yes"))
    (got,) = evaluate_dump(path, label="d", bootstrap=Bootstrap(100, 0)).rows
    assert got.estimates["hit rate"] is None
    assert got.estimates["em"].mean == 0.0


def test_b12_resampled_means_of_what_is_defined_are_those_of_a_loop():
    """A column with undefined values: percentiles of means over the defined ones among what is drawn."""
    rng = np.random.default_rng(0)
    values = rng.random((12, 6))
    values[:5, 4] = math.nan
    got = Bootstrap(resamples=20_000, seed=1).means(values, "NQ")
    drawn = rng.integers(12, size=(20_000, 12))
    loop = [np.nanmean(values[rows, 4]) for rows in drawn if not np.isnan(values[rows, 4]).all()]
    for q in (2.5, 50, 97.5):
        assert np.nanpercentile(got[:, 4], q) == pytest.approx(np.percentile(loop, q), abs=0.01)


class Shelf:
    """A retriever that finds one passage for everything."""

    fingerprint = "made by the test"

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        return [[Passage("1", "Norway", "It lies in the north since 1978.")] for _ in queries]


def test_b12_the_check_of_an_index_goes_by_it():
    check = AnswerCheck(Shelf(), top=1, name="shelf")  # type: ignore[arg-type]
    asked = [Question(str(n), "q?", answers, "s") for n, answers in enumerate([("no", "false"), ("7",), ("1978",)])]
    assert [result for _, result in check.check(asked, "train")] == [None, False, True]


# ---- F37: booleans of a question set


@pytest.mark.parametrize(
    ("truth", "right"),
    [
        (True, ("yes", "true")),
        ({"target": [False]}, ("no", "false")),
        ({"target": np.array([True])}, ("yes", "true")),
        ({"target": [None, "Oslo"]}, ("Oslo",)),
        ({"target": ["True"]}, ("True",)),  # the word: a string stays as it is
        ("no", ("no",)),
    ],
)
def test_f37_booleans_are_yes_and_no(truth, right: tuple[str, ...]):
    assert accepted_answers(truth) == right


def test_f37_strategyqas_layout(tmp_path: Path):
    lines = [
        {"qid": "1", "question": "Is it?", "answer": True, "facts": []},
        {"id": "2", "question": "Was it?", "golden_answers": [False]},
        {"id": "3", "question": "Which song by Spandau Ballet?", "answers": ["True"]},
    ]
    path = tmp_path / "strategyqa.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [one.answers for one in read_questions(path)] == [("yes", "true"), ("no", "false"), ("True",)]
    assert exact_match("Yes", ("yes", "true")) and exact_match("True.", ("yes", "true"))
    assert not exact_match("no", ("yes", "true"))


# ---- E28: one string is one answer


@pytest.mark.parametrize(
    ("function", "answer", "accepted", "right"),
    [
        # new-user.md F4
        (exact_match, "641", "641", True),
        (exact_match, "6", "641", False),
        (contains, "12 4", "641", False),
        (contains, "it is 641 m", "641", True),
        (is_exact, "Paris", "paris", True),
        (is_exact, "p", "paris", False),
        (mentions, "in Paris", "paris", True),
        (mentions, "spider", "paris", False),
        (f1, "Barack Obama", "Barack Hussein Obama", 0.8),  # 2 · 2 / (2 + 3)
        (f1, "a b", ["b"], 1.0),
    ],
)
def test_e28_a_string_is_one_answer(function, answer: str, accepted, right):
    assert function(answer, accepted) == pytest.approx(right)
    if isinstance(accepted, str):
        assert function(answer, [accepted]) == pytest.approx(right)


# ---- 25 and F37: the answer, as Search-R1's code takes it


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<answer>Paris</answer></answer>", "Paris"),
        ("<answer>a<answer>Paris</answer>", "a<answer>Paris"),
        ("<answer>Paris</answer> so </answer>", "Paris"),
        ("<answer><answer>Paris</answer></answer>", "<answer>Paris"),
        ("</answer><answer>Paris", None),
        ("<answer>a</answer>b<answer> c\n</answer>", "c"),
        ("<answer>a</answer></answer><answer>b</answer>", "b"),
        ("<answer>a</answer><answer>b", "a"),
        ("<answer></answer>", ""),
        ("no", None),
    ],
)
def test_25_the_answer_is_search_r1s(text: str, right: str | None):
    """qa_em, extract_solution, with its prompt's example in front; without a pair it takes that one, here None."""
    assert last_answer([text]) == right
    assert last_answer(text) == right


def test_25_an_answer_lies_in_one_turn():
    """A choice: qa_em reads turns and results as one text, so what a tool returned could become the answer."""
    assert last_answer(["<answer>open", "closed</answer>"]) is None
