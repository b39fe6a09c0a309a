"""Issue 21, items B10, B11, B13, B14: the second study's baselines, the paper's judge, verl's own scores, the sources.

Each case has an input, the right value, and its source.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl")
pytest.importorskip("openai")

import torch
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.registry import get_reward_manager_cls
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.reward_score import default_compute_score

from tests.composed import composed
from verl_mtgrpo.credit import mt_grpo
from verl_mtgrpo.data.known import KNOWN
from verl_mtgrpo.data.rows import make_row, write_parquet
from verl_mtgrpo.demo.policy import build_tokenizer
from verl_mtgrpo.doctor.data import data
from verl_mtgrpo.doctor.setup import Setup
from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.integration.preflight import check_run
from verl_mtgrpo.report.published import PUBLISHED
from verl_mtgrpo.rewards import PRESETS, ToolCall, Transcript, Turn, TurnRewards, pay, search_r1_em, search_r1_format
from verl_mtgrpo.rewards.answers import last_answer
from verl_mtgrpo.rewards.formats import SEARCH_R1
from verl_mtgrpo.rewards.judge_paper import PaperJudge
from verl_mtgrpo.rewards.search_r1 import is_valid_sequence, whole_text

pytestmark = pytest.mark.compose


def config(*overrides: str):
    return composed("actor_rollout_ref.rollout.n=4", *overrides, preset="turn_rloo")


def manager(*overrides: str, **more: Any):
    """Make the real reward manager as verl's reward worker does."""
    tokenizer = build_tokenizer(["a b c"], [])
    tokenizer.chat_template = "{{ messages }}"

    async def make():
        return get_reward_manager_cls("mtgrpo")(config(*overrides), tokenizer=tokenizer, compute_score=None, **more)

    return asyncio.run(make())


def score(scoring, transcript: Transcript, source: str, truth: Any) -> dict[str, Any]:
    row = {
        "reward_model": {"ground_truth": truth},
        "tool_extra_fields": {"transcript": transcript},
        "data_source": source,
        "extra_info": {"id": "7"},
    }
    fields = {name: np.array([None], dtype=object) for name in row}
    for name, value in row.items():
        fields[name][0] = value
    asked = DataProto.from_dict(tensors={"responses": torch.zeros(1, 6)}, non_tensors=fields)
    return asyncio.run(scoring.run_single(asked))["reward_extra_info"]


# ---- B10: search_r1_em and search_r1_format (each rollout scored by Search-R1's own code)

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
    """Search-R1 pays 1 (and 0.8) here, because "Beijing" is in its prompt and the rollout gives no answer."""
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
    """Find validity and answer by regular expressions: slow, and written from the description of the format."""
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
        assert (is_valid_sequence(text, SEARCH_R1), last_answer(text)) == naive(text), text
        valid += is_valid_sequence(text, SEARCH_R1)
    assert 800 < valid < 2200, "both kinds occur"


def test_b10_reading_a_long_text_is_linear():
    text = "<answer>" * 200_000 + "<think>" * 200_000
    assert last_answer(text) is None
    assert not is_valid_sequence(text, SEARCH_R1)


def test_b10_both_are_presets_by_name():
    assert {"search_r1_em", "search_r1_format"} <= set(PRESETS)


# ---- B11: judge_paper (its rules and replies: tests/rewards/test_judge_paper.py)

JUDGED = ("reward.turn.preset=judge_paper", "+reward.turn.judge.model=m")
ADDRESS = "+reward.turn.judge.base_url=http://127.0.0.1:9/v1"
STANDING_IN = ("reward.custom_reward_function.path=pkg://verl_mtgrpo.rewards.judge",)
# (what, overrides, what the start says)
JUDGE_SETUPS = [
    ("without an address", JUDGED, r"preset=judge_paper needs reward.turn.judge.base_url"),
    (
        "its outcome from the function that stands in for it",
        (*JUDGED, ADDRESS, *STANDING_IN, "reward.turn.outcome=compute_score"),
        r"stands in for the judge and scores nothing; set reward.turn.outcome=preset",
    ),
    (
        "in a format without rules for turns",
        (*JUDGED, ADDRESS, "actor_rollout_ref.rollout.multi_turn.format=gpt-oss"),
        r"no rules for turns in the format 'gpt-oss'",
    ),
]


@pytest.mark.parametrize(("overrides", "said"), [case[1:] for case in JUDGE_SETUPS], ids=[c[0] for c in JUDGE_SETUPS])
def test_b11_the_start_treats_judge_paper_as_a_judge(overrides, said):
    with pytest.raises(ConfigError, match=said):
        check_run(config(*overrides))


@pytest.mark.parametrize("how", ["turns", "outcome"])
def test_b11_judge_paper_behind_verls_own_reward_model(how):
    """No address is needed: verl serves the judge under its path, and the manager asks verl's router."""
    served = (
        "reward.reward_model.enable=True",
        "reward.reward_model.enable_resource_pool=True",
        "reward.reward_model.model_path=my/judge",
        *STANDING_IN,
    )
    named = "reward.custom_reward_function.name=scored_by_judge"
    preset = ("reward.turn.preset=judge_paper", f"reward.turn.pay={how}", "trainer.turn.on_purpose=[reward.turn.pay]")
    asking = manager(*served, named, *preset, reward_router_address="127.0.0.1:9").reward_function
    assert isinstance(asking, PaperJudge)
    assert (asking.settings.base_url, asking.settings.model) == ("http://127.0.0.1:9/v1", "my/judge")
    assert asking.only_outcome == (how == "outcome"), "pay=outcome asks the paper's outcome prompt"


# ---- B13: reward.turn.outcome=compute_score on rows of `mtgrpo data`

# (data_source, ground truth, last turn, outcome): what verl 0.9.1's search_r1_like_qa_em gives, 1 for an exact match in
# the last <answer>, else 0. The names are those that verl/utils/reward_score/__init__.py lists.
SCORED_BY_VERL = [
    *((name, {"target": ["Oslo"]}, "<answer>Oslo</answer>", 1.0) for name in KNOWN),
    ("nq", {"target": ["Oslo"]}, "<answer>the oslo.</answer>", 1.0),
    ("nq", {"target": ["Bergen", "Oslo"]}, "<answer>Oslo</answer>", 1.0),
    ("nq", {"target": ["Oslo"]}, "<answer>in Oslo</answer>", 0.0),
    ("nq", {"target": ["Oslo"]}, "Oslo", 0.0),
    ("nq", ["Oslo"], "<answer>Oslo</answer>", 1.0),
    ("nq", "Oslo", "<answer>Oslo</answer>", 1.0),
    ("searchR1_nq", {"target": ["Oslo"]}, "<answer>Oslo</answer>", 1.0),
    ("openai/gsm8k", "72", "#### 72", 1.0),
]


@pytest.mark.parametrize(("source", "truth", "said_last", "outcome"), SCORED_BY_VERL)
def test_b13_verls_own_score_of_rows_of_ours(source, truth, said_last, outcome):
    scoring = manager("reward.turn.outcome=compute_score")
    scoring.reward_function = lambda transcript, _: TurnRewards((0.25, 0.0), 0.5)
    transcript = Transcript((searched("look", "<answer>Oslo</answer>"), said(said_last)), "answered")
    info = score(scoring, transcript, source, truth)
    assert json.loads(info["turn_rewards"]) == [0.25, outcome]
    assert (info["outcome/score"], info["data_source"]) == (outcome, source), "reported under the row's own name"


def test_b13_the_names_are_the_ones_that_verl_lists():
    listed = set(re.findall(r'"searchR1_(\w+)"', inspect.getsource(default_compute_score)))
    assert listed == set(KNOWN)


def test_b13_a_function_of_ones_own_gets_the_row_as_it_is(tmp_path):
    (tmp_path / "own.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return 0.75 if (data_source, ground_truth) == ('nq', ['Oslo']) else 0.0\n"
    )
    own = ("reward.turn.outcome=compute_score", f"reward.custom_reward_function.path={tmp_path / 'own.py'}")
    scoring = manager(*own)
    scoring.compute_score = get_custom_reward_fn(config(*own))
    transcript = Transcript((said("<answer>Oslo</answer>"),), "answered")
    assert json.loads(score(scoring, transcript, "nq", ["Oslo"])["turn_rewards"]) == [0.75]


# (data_source of the last row of a parquet file, more settings, what the start says; None: nothing)
OUTCOME = ("reward.turn.outcome=compute_score",)
STARTS = [
    ("nq", OUTCOME, None),
    ("searchR1_popqa", OUTCOME, None),
    ("aime2025", OUTCOME, None),
    ("my_questions", (), None),
    ("my_questions", (*OUTCOME, "reward.custom_reward_function.path=own.py"), None),
    ("my_questions", OUTCOME, "data_source 'my_questions', for which verl has no reward function"),
]


@pytest.mark.parametrize(("source", "overrides", "told"), STARTS)
def test_b13_rows_that_verl_cannot_score_are_refused_at_the_start(tmp_path, source, overrides, told):
    about = {"split": "train", "system_prompt": None}
    rows = [make_row("q", ["Oslo"], index=n, id=str(n), data_source="nq", **about) for n in range(40)]
    rows.append(make_row("q", ["Oslo"], index=40, id="40", data_source=source, **about))
    write_parquet(rows, tmp_path / "train.parquet")
    files = [f"data.{key}_files={tmp_path / 'train.parquet'}" for key in ("train", "val")]
    found = list(data(Setup(config(*files, "data.train_batch_size=8", *overrides))))
    if told is None:
        assert [one.status for one in found] == ["ok"], found
    else:
        assert {one.status for one in found} == {"fail"}
        assert told in found[0].message
        assert "set reward.custom_reward_function.path to your function" in found[0].fix
        assert "nq, triviaqa" in found[0].fix


# ---- B14: three versions of the paper, and which statement is whose

ROOT = Path(__file__).parents[2]
TITLES = (  # arXiv 2505.11821 v1, v2, v3: "Reinforcing Multi-Turn Reasoning in LLM Agents via …"
    "Turn-Level Credit Assignment",
    "Turn-Level Reward Design",
    "Fine-Grained Reward Structure and Credit Assignment",
)


@pytest.mark.parametrize("place", ["README.md", "docs/paper.md", "verl_mtgrpo/credit/mt_grpo.py"])
def test_b14_all_three_titles_are_cited(place):
    text = " ".join((ROOT / place).read_text().split())
    assert [title for title in TITLES if title not in text] == []


def test_b14_more_than_two_turns_on_chains_are_said_to_be_ours():
    assert "this package's extension to chains" in " ".join((mt_grpo.__doc__ or "").split())
    table = (ROOT / "docs" / "paper.md").read_text()
    for said_there in ("**tree**", "**chains**", "`missing_turn`, which is ours", "judge_paper", "search_r1_format"):
        assert said_there in table
    assert "(docs/paper.md)" in (ROOT / "README.md").read_text()


# Table 2 of arXiv 2505.11821 v2, read in its text: NQ, TriviaQA, PopQA, HotpotQA, 2Wiki, Musique, average.
TABLE_2 = {
    "base model": "177 319 181 160 167 040 174",
    "instruct model": "320 563 349 292 277 118 320",
    "GRPO-OR": "391 560 388 331 306 129 351",
    "GRPO-MR": "453 628 450 416 375 164 414",
    "PPO-OR": "483 639 456 435 382 199 432",
    "PPO-MR": "472 629 452 436 402 180 429",
    "GRPO (OTC)": "444 597 431 366 311 130 380",
    "PPO (OTC)": "446 623 425 383 363 152 399",
    "StepSearch": "355 570 385 351 396 179 373",
    "MT-PPO": "490 647 459 453 424 209 447",
}


@pytest.mark.parametrize("method", TABLE_2)
def test_b14_the_papers_second_table_is_complete(method):
    values = [int(value) / 1000 for value in TABLE_2[method].split()]
    assert sum(values[:6]) / 6 == pytest.approx(values[6], abs=0.00051), "as the paper's own average says"
    readme = (ROOT / "recipes" / "paper_v2_search_r1" / "README.md").read_text()
    line = next(line for line in readme.splitlines() if line.startswith(f"| {method}") and line.count("|") > 8)
    assert [float(cell) for cell in line.split("|")[2:9]] == values
    ours = [one for one in PUBLISHED if (one.method, one.version) == (method, "v2")]
    assert all([*one.em.values(), one.average] == values for one in ours)


# ---- F38: a turn with neither call nor answer


@pytest.mark.parametrize("readme", sorted((ROOT / "recipes").glob("*/README.md")), ids=lambda path: path.parent.name)
def test_f38_every_recipes_differences_say_it(readme):
    differences = " ".join(readme.read_text().partition("## Differences")[2].split())
    assert not differences or "turn with neither call nor answer" in differences
