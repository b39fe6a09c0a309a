"""Evaluation of dumps: scores known by hand, intervals against loops, answers against an independent SQuAD."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracles import squad_em, squad_f1
from tests.report.made import dump_row, rollout_of, write_rows
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.report import evaluation
from verl_mtgrpo.report.evaluation import METRICS, Bootstrap, Evaluation, differences, evaluate_dump
from verl_mtgrpo.report.published import PAPER_SETS, PUBLISHED, natural_name
from verl_mtgrpo.rewards import ToolCall, Transcript
from verl_mtgrpo.rewards.answers import exact_match, f1

BOOTSTRAP = Bootstrap(resamples=1000, seed=0)
HIT = ToolCall("search", "{}", "Doc 1: The Vel flows by Orrin.")
MISS = ToolCall("search", "{}", "Doc 1: Mar is a town.")
UNSEEN = ToolCall("search", "{}", "Doc 1: The Vel flows by Orrin.", seen=False)
FAILED = ToolCall("search", "{", "Error: no JSON.", ok=False, error_kind="bad_arguments")


def evaluated(folder: Path, rows: list[dict[str, Any]], *, name: str = "5.jsonl", resamples: int = 1000) -> Evaluation:
    return evaluate_dump(write_rows(folder / name, rows), label=name, bootstrap=Bootstrap(resamples, 0))


def row(question: str, session: int, rollout: Transcript, data_source: str = "nq", **more: Any) -> dict[str, Any]:
    """A dumped rollout; accepted are "Vel" and "the Vel". What was paid is not looked at."""
    known = {"data_source": data_source, "question_id": question, **more}
    return dump_row(question, session, rollout, [0.0] * len(rollout.turns), **known)


@pytest.mark.parametrize(
    ("rollout", "scores"),
    [
        # em, f1, format, tool execution, hit rate, searches
        (rollout_of("The  Vel!", HIT), (1, 1, 1, 1, 1, 1)),
        (rollout_of("river Vel", MISS, HIT), (0, 2 / 3, 1, 1, 1, 2)),
        (rollout_of("Vel"), (1, 1, 1, 0, 0, 0)),
        (rollout_of("Mar", FAILED), (0, 0, 1, 0, 0, 1)),
        (rollout_of(None, UNSEEN), (0, 0, 0, 1, 0, 1)),
        (rollout_of("Vel", HIT, call_text="<tool_call>Orrin</tool_call>"), (1, 1, 0, 1, 1, 1)),
        (Transcript((), "response_length"), (0, 0, 0, 0, 0, 0)),
    ],
)
def test_scores_known_by_hand(tmp_path: Path, rollout: Transcript, scores: tuple[float, ...]):
    (got,) = evaluated(tmp_path, [row("q", 0, rollout)]).rows
    assert [got.estimates[name].mean for name in METRICS] == pytest.approx(scores)
    assert got.estimates["em"].low is None, "one question has no interval"


def test_a_text_format_without_rules_has_no_format_rate(tmp_path: Path):
    (got,) = evaluated(tmp_path, [row("q", 0, rollout_of("Vel", format="gpt-oss"))]).rows
    assert got.estimates["format"] is None
    assert got.estimates["em"].mean == 1


def test_the_logged_numbers_are_not_used(tmp_path: Path):
    (got,) = evaluated(tmp_path, [row("q", 0, rollout_of("Vel"), **{"outcome/em": 0.0, "tool/used": 1.0})]).rows
    assert (got.estimates["em"].mean, got.estimates["tool execution"].mean) == (1, 0)


def two_sets() -> list[dict[str, Any]]:
    """HotpotQA: one question of two, right in 1 of 2 and 0 of 1 rollouts; NQ: three questions, two right."""
    right, wrong = rollout_of("Vel", HIT), rollout_of("Mar")
    hotpot = [("a", 0, right), ("a", 1, wrong), ("b", 0, wrong)]
    nq = [("c", 0, right), ("c", 1, right), ("d", 0, right), ("d", 1, right), ("e", 0, wrong), ("e", 1, wrong)]
    return [row(*one, "hotpotqa") for one in hotpot] + [row(*one, "searchR1_nq") for one in nq]


def test_questions_weigh_alike_and_so_do_data_sets(tmp_path: Path):
    got = evaluated(tmp_path, two_sets())
    assert [(one.data_set, one.questions, one.rollouts) for one in got.rows] == [("NQ", 3, 6), ("HotpotQA", 2, 3)]
    assert [one.estimates["em"].mean for one in got.rows] == pytest.approx([2 / 3, 1 / 4])
    assert got.average.estimates["em"].mean == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert [one.missing for one in got.rows] == [0, 1], "b has one rollout where a has two"
    assert got.paper_average is None


def test_the_average_of_the_papers_six(tmp_path: Path):
    answers = {name: "Vel" if n % 2 else "Mar" for n, name in enumerate([*PAPER_SETS, "Bamboogle"])}
    got = evaluated(tmp_path, [row(name, 0, rollout_of(answer), name) for name, answer in answers.items()])
    assert got.average.estimates["em"].mean == pytest.approx(3 / 7)
    assert got.paper_average.estimates["em"].mean == pytest.approx(3 / 6)


def test_dropped_rollouts_are_counted_and_not_scored(tmp_path: Path):
    down = ToolCall("search", "{}", "Error", ok=False, error_kind="timeout", error="no answer in 20 s")
    lost = Transcript(rollout_of("x", down).turns[:1], "outage")
    gone = {"outcome/dropped": 1.0, "dropped_reason": "no answer in 20 s"}
    right = row("q", 0, rollout_of("Vel", HIT))
    rows = [right, row("q", 1, lost, **gone), row("r", 0, lost), row("r", 1, lost, **gone)]
    (got,) = evaluated(tmp_path, rows).rows
    assert got.estimates["em"].mean == 1
    assert (got.questions, got.rollouts, got.dropped, got.missing) == (1, 1, 3, 0)
    assert evaluated(tmp_path, rows).reasons == {"no answer in 20 s": 2, "the search was down": 1}
    with pytest.raises(DataError, match=r"all 3 rollouts were dropped: no answer in 20 s \(2\); the search was down"):
        evaluated(tmp_path, rows[1:])
    other = [row("s", 0, rollout_of("Vel"), "popqa")]
    both = evaluated(tmp_path, rows[1:] + other)
    assert [one.estimates["em"] and one.estimates["em"].mean for one in both.rows] == [None, 1]
    assert both.average.estimates["em"] is None, "an average over what is left would be another one"


def test_an_output_of_a_rollout_that_verl_wrote_in_several_rows_counts_once(tmp_path: Path):
    rows = [{**row("q", 0, rollout_of("Vel")), "uid": f"q_0_{output}"} for output in range(3)]
    assert evaluated(tmp_path, rows).rows[0].rollouts == 1
    plain = [{**row("q", 0, rollout_of("Vel")), "uid": "3f2a-91"} for _ in range(3)]  # verl's older trainer
    assert evaluated(tmp_path, plain).rows[0].rollouts == 3


# ---- intervals


def values_of(questions: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((questions, len(METRICS)))


def test_resampled_means_have_the_spread_of_a_loops(monkeypatch: pytest.MonkeyPatch):
    """This also holds with equal questions, and not only at the ends of the interval."""
    values = np.repeat(values_of(9, 1), [1, 1, 1, 1, 2, 2, 3, 4, 5], axis=0)
    got = Bootstrap(resamples=20_000, seed=3).means(values, "NQ")
    rng = random.Random(0)
    for column in range(2):
        loop = [sum(rng.choices(values[:, column].tolist(), k=20)) / 20 for _ in range(20_000)]
        for q in (1, 25, 50, 75, 99):
            assert np.percentile(got[:, column], q) == pytest.approx(np.percentile(loop, q), abs=0.006)
    monkeypatch.setattr(evaluation, "_BLOCK", 50)
    again = Bootstrap(resamples=20_000, seed=3).means(values, "NQ")
    assert again == pytest.approx(got), "the same numbers, however many are drawn at a time"


def test_the_interval_against_a_loop_with_other_random_numbers(tmp_path: Path):
    rows = [row(f"q{n}", 0, rollout_of("Vel" if n % 3 else "Mar", *[HIT] * (n % 4))) for n in range(60)]
    (got,) = evaluated(tmp_path, rows, resamples=20_000).rows
    rng = random.Random(0)
    for name, values in {"em": [float(n % 3 > 0) for n in range(60)], "searches": [n % 4 for n in range(60)]}.items():
        means = sorted(sum(rng.choices(values, k=60)) / 60 for _ in range(20_000))
        estimate = got.estimates[name]
        assert (estimate.low, estimate.high) == pytest.approx((means[500], means[19_500]), abs=0.02)


def test_about_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        right = (rng.random((200, 1)) < 0.3).astype(float)
        low, high = np.quantile(Bootstrap(resamples=400).means(right, "NQ"), [0.025, 0.975])
        held += low <= 0.3 <= high
    assert 0.92 <= held / 400 <= 0.975


def test_more_rollouts_of_the_same_questions_do_not_make_it_narrower(tmp_path: Path):
    """All four rollouts of a question agree: they say nothing that one did not say."""
    answers = ["Vel" if n % 2 else "Mar" for n in range(30)]
    one = [row(f"q{n}", 0, rollout_of(answer)) for n, answer in enumerate(answers)]
    four = [row(f"q{n}", k, rollout_of(answer)) for n, answer in enumerate(answers) for k in range(4)]
    single, several = (evaluated(tmp_path, rows).rows[0].estimates["em"] for rows in (one, four))
    assert single == several


@pytest.mark.heavy
def test_ten_thousand_resamples_of_the_largest_set_take_seconds():
    """PopQA's 14,267 questions, one rollout each; the processor's time, because others may be using the machine."""
    rng = np.random.default_rng(0)
    columns = [rng.integers(kinds, size=14_267) for kinds in (2, 20, 2, 2, 2, 4)]
    start = time.process_time()
    Bootstrap().means(np.stack(columns, axis=1).astype(float), "PopQA")
    assert time.process_time() - start < 30


def test_an_interval_does_not_depend_on_the_other_sets(tmp_path: Path):
    alone = evaluated(tmp_path, [one for one in two_sets() if one["data_source"] == "hotpotqa"])
    assert alone.rows[0] == evaluated(tmp_path, two_sets()).rows[1]


# ---- two dumps


def test_differences_are_of_the_same_questions(tmp_path: Path):
    """b wins one question, loses none, of the 40 that both have: each pair counts, the spread of questions does not."""
    first = [row(f"q{n}", 0, rollout_of("Vel" if n % 2 else "Mar")) for n in range(41)]
    other = [row(f"q{n}", 0, rollout_of("Vel" if n % 2 or n == 0 else "Mar")) for n in reversed(range(40))]
    a, b = evaluated(tmp_path, first), evaluated(tmp_path, other, name="6.jsonl")
    (got,) = differences(a, b, BOOTSTRAP)
    estimate = got.estimates["em"]
    assert (estimate.mean, got.questions) == (pytest.approx(1 / 40), 40)
    # The number of times that one question of 40 is drawn: 0 with probability 0.36, at most 3 with 0.98.
    assert (estimate.low, estimate.high) == pytest.approx((0, 3 / 40))


def test_questions_without_ids_or_with_the_same_are_not_paired(tmp_path: Path):
    rows = [row("a", 0, rollout_of("Vel")), row("b", 0, rollout_of("Vel"))]
    good = evaluated(tmp_path, rows)
    for wrong in ("", "a"):
        other = evaluated(tmp_path, [{**one, "question_id": wrong} for one in rows])
        assert differences(good, other, BOOTSTRAP) == ()


# ---- answers


PIECES = """
the The AN a an Oslo oslo São Malmö 北京 1978 U.S. don't rock-n-roll e.g. état naïve “quoted” the’s ß İzmir x 7,5 — &
river River (river) New_York a.b Théâtre an’ 3rd
"""


def random_pair(rng: random.Random) -> tuple[str, list[str]]:
    """An answer and accepted ones: unrelated, or one with words left out, repeated, re-ordered or in other case."""

    def phrase() -> list[str]:
        return [rng.choice(PIECES.split()) for _ in range(rng.randint(1, 6))]

    def joined(words: list[str]) -> str:
        return "".join(word + rng.choice([" ", " ", "  ", ", ", "-", "\t", "\n", "."]) for word in words)

    # SQuAD calls two answers equal that normalise to nothing; ours has nothing in an empty answer that could be right.
    gold = [joined([*phrase(), "Oslo"]) for _ in range(rng.randint(1, 3))]
    words = phrase() if rng.random() < 0.2 else rng.choice(gold).split()
    changed = [rng.choice([str.upper, str.lower, str])(word) for word in words if rng.random() < 0.85]
    changed += rng.choices(words, k=rng.choice([0, 0, 1, 2]))
    if rng.random() < 0.3:
        rng.shuffle(changed)
    return (joined(changed) if rng.random() < 0.9 else gold[0].lower()), gold


def test_em_and_f1_agree_with_an_independent_squad_on_1000_pairs():
    rng = random.Random(0)
    pairs = [random_pair(rng) for _ in range(1000)]
    exact = [exact_match(*pair) for pair in pairs]
    overlap = [f1(*pair) for pair in pairs]
    assert exact == [squad_em(*pair) for pair in pairs]
    assert overlap == pytest.approx([squad_f1(*pair) for pair in pairs])
    assert 100 < sum(exact) < 900, "both outcomes occur"
    assert sum(0 < value < 1 for value in overlap) > 300


# ---- names and numbers of the paper


def test_names_as_papers_write_them():
    sources = ["searchR1_nq", "NQ", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle", ""]
    names = ["NQ", "NQ", "TriviaQA", "PopQA", "HotpotQA", "2Wiki", "MuSiQue", "Bamboogle", "(unnamed)"]
    assert [natural_name(source) for source in sources] == names
    assert natural_name("my own set") == "my own set"


def test_the_papers_numbers_add_up_to_its_averages():
    whole = [one for one in PUBLISHED if one.em and one.average is not None]
    assert len(whole) == 5
    for one in whole:
        assert sum(one.em[name] for name in PAPER_SETS) / 6 == pytest.approx(one.average, abs=0.0005)


# ---- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "5.jsonl is empty"),
        ('{"uid": "q_0_0"\n', "5.jsonl, line 1: not JSON"),
        ("[1]\n", "line 1: is a JSON list, expected an object"),
        ('\n{"uid": "q_0_0", "input": "x"}\n', "line 2: is a rollout without a transcript, .*trainer.rollout_data_dir"),
        ('{"transcript": "{}", "turn_rewards": "[]"}\n', "line 1: no usable transcript"),
    ],
)
def test_what_is_no_dump_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "5.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        evaluate_dump(tmp_path / "5.jsonl", label="x", bootstrap=BOOTSTRAP)


def test_a_line_that_was_not_written_to_its_end_is_named(tmp_path: Path):
    whole = json.dumps(row("q", 0, rollout_of("Vel")))
    (tmp_path / "5.jsonl").write_text(whole + "\n" + whole[:100])
    with pytest.raises(DataError, match=r"5.jsonl, line 2: not JSON .*killed"):
        evaluate_dump(tmp_path / "5.jsonl", label="x", bootstrap=BOOTSTRAP)


def test_a_question_without_accepted_answers_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="question q has no accepted answer"):
        evaluated(tmp_path, [row("q", 0, rollout_of("Vel"), gts={"target": []})])


def test_a_line_separator_inside_a_string_is_no_end_of_line(tmp_path: Path):
    rows = [row("q", 0, rollout_of("Vel\u2028")), row("r", 0, rollout_of("Vel"))]
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)  # as verl writes it
    path = tmp_path / "5.jsonl"
    path.write_text(text.replace("\\\\u2028", "\u2028"), encoding="utf-8")
    assert "\u2028" in path.read_text(encoding="utf-8")
    assert evaluate_dump(path, label="x", bootstrap=BOOTSTRAP).rows[0].questions == 2


def test_too_few_resamples_are_refused():
    with pytest.raises(ConfigError, match="resamples is 5"):
        Bootstrap(resamples=5)
