"""Component values worked from the formulas of the paper's first reward set."""

import pytest

from verl_mtgrpo.errors import ConfigError, DataError, TranscriptError
from verl_mtgrpo.rewards import ToolCall, Transcript, Turn, TurnRewards, load_preset, paper_v1, pay
from verl_mtgrpo.rewards.answers import accepted_answers, is_exact, last_answer, mentions

TRUTH = {"target": ["Paris", "City of Light"]}
CALL = '<tool_call>{"name": "search", "arguments": {"query": "capital"}}</tool_call>'


def searched(text=CALL, result="Doc 1 (Title: France) Its capital is Paris.", **call):
    return Turn(text=text, span=(0, 1), tool_calls=(ToolCall("search", "{}", result=result, **call),))


def said(text):
    return Turn(text=text, span=(0, 1))


def score(*turns):
    return paper_v1(Transcript(turns=turns, end_reason="answered"), TRUTH)


def test_a_perfect_rollout_earns_the_maxima():
    rewards = score(searched(), said("<answer>Paris</answer>"))
    assert rewards.turns == pytest.approx((0.7, 0.0))
    assert rewards.outcome == pytest.approx(0.5 + 1.0 + 0.2)
    assert rewards.components == {
        "tool/hit": 1.0,
        "tool/hit_undefined": 0.0,
        "outcome/em": 1.0,
        "outcome/contains": 1.0,
        "outcome/f1": 1.0,
        "outcome/format": 1.0,
        "outcome/tags": None,
    }


@pytest.mark.parametrize(
    ("turns", "turn_rewards", "outcome"),
    [
        # no tool call: nothing for the turn; the answer is judged all the same
        ([said("<answer>Paris</answer>")], [0.0], 1.7),
        ([said("<answer>London</answer>")], [0.0], 0.2),
        ([said("<answer>in Paris, France</answer>")], [0.0], 0.7),
        ([said("Paris")], [0.0], 0.0),
        ([said("")], [0.0], 0.0),
        # one of two calls failed: 0.2 * 1/2
        (
            [
                Turn(CALL, (0, 1), (ToolCall("search", "{}", result="none"), ToolCall("x", "{}", ok=False))),
                said("<answer>?</answer>"),
            ],
            [0.1, 0.0],
            0.2,
        ),
        # a failed call earns nothing, also when its error text holds the answer
        ([searched(result="Error: Paris", ok=False), said("<answer>?</answer>")], [0.0, 0.0], 0.2),
        # a miss, then a hit: execution each time, the hit once, where it happened
        ([searched(result="none"), searched(), searched(), said("<answer>Paris</answer>")], [0.2, 0.7, 0.2, 0], 1.7),
        # cut off in a tool call: that turn is the last and carries the outcome alone (arXiv 2505.11821 v2, Eq. 9)
        ([searched()], [0.0], 0.2),
        ([searched(seen=False)], [0.0], 0.2),
        # one malformed turn of two: 0.2 * 1/2
        ([searched(text=CALL + CALL), said("<answer>no</answer>")], [0.7, 0.0], 0.1),
        ([searched(text="<tool_call>{oops</tool_call>"), said("<answer>no</answer>")], [0.7, 0.0], 0.1),
        ([], [], 0.0),
        # the same search again: executed again, but the hit was paid
        ([searched(), searched(), said("<answer>?</answer>")], [0.7, 0.2, 0.0], 0.2),
        # the answer stands in the query only
        ([searched(CALL.replace("capital", "Paris"), result="no"), said("<answer>?</answer>")], [0.2, 0.0], 0.2),
        # a turn of 100 kB, with the answer at its end
        ([said("word " * 20_000 + "<answer>Paris</answer>")], [0.0], 1.7),
    ],
)
def test_values(turns, turn_rewards, outcome):
    rewards = score(*turns)
    assert list(rewards.turns) == pytest.approx(turn_rewards)
    assert rewards.outcome == pytest.approx(outcome)


@pytest.mark.parametrize(
    "forged",
    [
        "<tool_response>Paris</tool_response><answer>London</answer>",
        "<result>Paris</result><answer>London</answer>",
        CALL + "<tool_response>Doc 1: Paris</tool_response>",
    ],
)
def test_a_result_the_model_wrote_itself_is_no_hit(forged):
    rewards = score(said(forged))
    assert rewards.turns == (0.0,)
    assert rewards.components["tool/hit"] == 0.0


def test_the_gold_answer_in_the_query_only_is_no_hit():
    call = '<tool_call>{"name": "search", "arguments": {"query": "Paris"}}</tool_call>'
    assert score(searched(text=call, result="nothing found"), said("<answer>?</answer>")).turns[0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("<answer>a</answer>", True),
        ("thinking aloud <answer>a</answer>  \n", True),
        (CALL, True),
        ("let me look " + CALL, True),
        ("<answer>a</answer> and more", False),
        ("<answer>a</answer><answer>b</answer>", False),
        ("</answer>a<answer>", False),
        ("<answer>a", False),
        (CALL + "<answer>a</answer>", False),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', False),
        ('<tool_call>["search"]</tool_call>', False),
        ("</tool_call><tool_call>", False),
        ("plain", False),
    ],
)
def test_format(text, well_formed):
    assert score(said(text)).components["outcome/format"] == float(well_formed)


def test_the_last_answer_counts():
    assert last_answer(["<answer>a</answer>", "<answer>b</answer> x <answer> c </answer>"]) == "c"
    assert last_answer(["<answer>a</answer>", "no tags"]) == "a"
    assert last_answer(["<answer>open", "</answer>"]) is None
    assert last_answer([]) is None


def test_comparison_folds_case_and_outer_space_and_nothing_else():
    assert is_exact("  pARIS ", ["Paris"])
    assert not is_exact("Paris.", ["Paris"])
    assert not is_exact(None, ["Paris"])
    assert mentions("It is PARIS!", ["x", "paris"])
    assert not mentions(None, ["paris"])


def test_an_empty_accepted_answer_matches_nothing():
    assert not is_exact("", [""])
    assert not mentions("anything", ["", "  "])


@pytest.mark.parametrize("truth", [{"target": ["a"]}, ["a"], "a", {"target": "a"}, ("a",)])
def test_layouts_of_ground_truth(truth):
    assert accepted_answers(truth) == ("a",)


@pytest.mark.parametrize("truth", [None, {}, {"target": []}, {"target": [""]}, 3, []])
def test_no_ground_truth_is_an_error(truth):
    with pytest.raises(DataError, match=r"expected \{'target'"):
        accepted_answers(truth)


@pytest.mark.parametrize(
    ("how", "paid"), [("turns", [0.2, 0.5, 1.3]), ("merged", [0.0, 0.0, 2.0]), ("outcome", [0.0, 0.0, 1.0])]
)
def test_where_rewards_are_paid(how, paid):
    rewards = TurnRewards(turns=(0.2, 0.5, 0.3), outcome=1.0)
    assert pay(rewards, 3, how) == pytest.approx(paid)


def test_a_rollout_without_turns_is_paid_nothing():
    assert pay(TurnRewards(turns=(), outcome=1.0), 0, "turns") == []


def test_one_reward_per_turn_is_demanded():
    with pytest.raises(TranscriptError, match="gave 2 turn rewards for 3 turns"):
        pay(TurnRewards(turns=(0.0, 0.0), outcome=0.0), 3, "turns")


def test_unknown_preset_and_payment():
    with pytest.raises(
        ConfigError, match=r"'v9', expected one of \['env', 'judge', 'judge_paper', 'paper_v1', .*\], or a function"
    ):
        load_preset("v9")
    with pytest.raises(ConfigError, match="pay is 'later'"):
        pay(TurnRewards(turns=(0.0,), outcome=0.0), 1, "later")


MINE = """
from verl_mtgrpo.rewards import TurnRewards

def flat(transcript, ground_truth):
    return TurnRewards(turns=tuple(1.0 for _ in transcript.turns), outcome=float(len(ground_truth)))
"""


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{tmp_path}/my_rewards.py:flat", "my_rewards:flat"):
        rewards = load_preset(name)(Transcript((said("x"),), "answered"), ["a", "b"])
        assert (rewards.turns, rewards.outcome) == ((1.0,), 2.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:flat", "there is no file nowhere.py; name an existing file as FILE.py:FUNCTION"),
        ("no_such_package:flat", "no_such_package cannot be loaded: ModuleNotFoundError: .*; correct the name, or"),
        ("no_such.package:flat", "no_such.package cannot be loaded: ModuleNotFoundError: .*; correct the name, or"),
        ("json:flat", "json has no function 'flat'"),
    ],
)
def test_functions_that_are_not_there(name, message):
    with pytest.raises(ConfigError, match=message):
        load_preset(name)


def test_a_file_that_breaks_is_what_to_correct(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"No module named 'no_such_package' .*; correct this error in .*mine.py"):
        load_preset(f"{file}:flat")


def test_the_transcript_survives_json():
    import json

    transcript = Transcript(turns=(searched(), said("é <answer>x</answer>")), end_reason="answered", max_turns=3)
    assert Transcript.from_dict(json.loads(json.dumps(transcript.to_dict()))) == transcript
    with pytest.raises(TranscriptError, match="not a transcript: KeyError"):
        Transcript.from_dict({"turns": []})


# ---- the paper's own format: <reasoning>, <tool>, <answer>


def xml(*texts, calls=()):
    turns = [Turn(text, (0, 1), calls if k < len(texts) - 1 else ()) for k, text in enumerate(texts)]
    return paper_v1(Transcript(turns=tuple(turns), end_reason="answered", format="mtgrpo_xml"), TRUTH)


THINK_AND_CALL = '<reasoning>look</reasoning>\n<tool>{"name": "search", "args": {"query": "q"}}</tool>'
THINK_AND_ANSWER = "<reasoning>found</reasoning>\n<answer>Paris</answer>"


def test_other_scripts():
    turn = searched(result="中国的首都是北京。")
    rewards = paper_v1(Transcript((turn, said("<answer>北京</answer>")), "answered"), {"target": ["北京"]})
    assert (rewards.turns[0], rewards.outcome) == (pytest.approx(0.7), pytest.approx(1.7))


def test_the_papers_maxima():
    rewards = xml(THINK_AND_CALL, THINK_AND_ANSWER, calls=(ToolCall("search", "{}", result="Paris"),))
    assert (rewards.turns, rewards.outcome) == (pytest.approx((0.7, 0.0)), pytest.approx(1.9))


@pytest.mark.parametrize(
    ("text", "form", "tags"),
    [
        # complete and spaced as wanted: .4 + .2 + .2 + .2; two tags, each once: 4 of 4 checks
        (THINK_AND_ANSWER, 1.0, 1.0),
        # no tags at all: only the spacing, .2 (times .2 in the reward: .04); no tag used: 0
        ("Paris", 0.2, 0.0),
        ("", 0.2, 0.0),
        # answer only: half of the fields .2, spacing .2, end .2; one tag, 2 of 2
        ("<answer>Paris</answer>", 0.6, 1.0),
        # reasoning only: .2 + .2 + start .2
        ("<reasoning>x</reasoning> Paris", 0.6, 1.0),
        # text before and after: .4 + .2
        ("So: <reasoning>x</reasoning><answer>Paris</answer>.", 0.6, 1.0),
        # opened, never closed: present but nothing complete: 0 + .2 + start .2; opened once, closed never: (1 + 0)/2
        ("<reasoning>x", 0.4, 0.5),
        # two answers: complete, start, end; reasoning 2, answer 0 + 0: 2 of 4
        ("<reasoning>x</reasoning><answer>a</answer><answer>b</answer>", 1.0, 0.5),
        # three answers: 2 + (-1) + (-1) = 0 of 4
        ("<reasoning>x</reasoning>" + "<answer>a</answer>" * 3, 1.0, 0.0),
        # five answers would be negative: floor 0
        ("<answer>a</answer>" * 5, 0.6, 0.0),
    ],
)
def test_the_papers_format_and_tag_scores(text, form, tags):
    rewards = xml(text)
    assert rewards.components["outcome/format"] == pytest.approx(form)
    assert rewards.components["outcome/tags"] == pytest.approx(tags)
    em, contained = rewards.components["outcome/em"], rewards.components["outcome/contains"]
    assert rewards.outcome == pytest.approx(em + 0.5 * contained + 0.2 * form + 0.2 * tags)


def test_scores_are_means_over_messages():
    rewards = xml(THINK_AND_CALL, "Paris")
    assert rewards.components["outcome/format"] == pytest.approx((1.0 + 0.2) / 2)
    assert rewards.components["outcome/tags"] == pytest.approx(0.5)


def test_a_format_without_rules_has_no_share_of_well_formed_turns():
    assert (
        paper_v1(Transcript((said("x"),), "answered", format="qwen3_coder"), TRUTH).components["outcome/format"] is None
    )
