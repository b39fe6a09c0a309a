"""Faults of issue 21 in `mtgrpo data` and in the doctor's findings about question files, by number.

Layouts are those of public question sets, named at each case; their texts are made up here.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from verl_mtgrpo.cli.main import main
from verl_mtgrpo.data.corpus import read_corpus
from verl_mtgrpo.data.questions import Question, read_questions
from verl_mtgrpo.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def lines(path: Path, *records: Any) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def answers_of(path: Path) -> tuple[str, ...]:
    (question,) = read_questions(path)
    return question.answers


# ---- F37: files


@pytest.mark.parametrize("name", ["q.jsonlines", "q.jsonlines.gz"])
def test_f37_jsonlines(name: str, tmp_path: Path):
    """The suffix of QED's files and of many others: https://jsonlines.org."""
    file = lines(tmp_path / name, {"question": "who?", "answers": ["Ida"]})
    (question,) = read_questions(file)
    assert (question.answers, question.source) == (("Ida",), "q")
    passage = {"id": "1", "contents": '"Orrin"\nA town.'}
    assert [one.title for one in read_corpus(lines(tmp_path / f"c{file.name}", passage))] == ["Orrin"]
    local = tmp_path / "local" / "nq"
    local.mkdir(parents=True)
    for split in ("train", "test"):
        lines(local / f"{split}{name.removeprefix('q')}", {"question": f"{split}?", "answers": ["a"]})
    assert main(["data", "nq", "--local", str(local.parent), "--out", str(tmp_path / "out")]) == 0


# ---- F37: QED


def span(text: str, start: int = 0) -> dict[str, Any]:
    return {"start": start, "end": start + len(text), "string": text}


def qed(**changes: Any) -> dict[str, Any]:
    """Read the layout of google-research-datasets/QED, qed-dev.jsonlines @ec69515."""
    return {
        "example_id": -3290814144789249484,
        "title_text": "Bridges of Orrin",
        "url": "https://example.org",
        "question_text": "who built the old bridge",
        "paragraph_text": "Ida Vel and Per Mar built the old bridge .",
        "sentence_starts": [0],
        "original_nq_answers": [[span("Ida Vel and Per Mar")], [span("Ida Vel"), span("Per Mar", 12)]],
        "annotation": {"explanation_type": "single_sentence"},
        **changes,
    }


def test_f37_qed(tmp_path: Path):
    """Each span is an accepted answer, as NQ-open has QED's question "who designed the garden city of new earswick":
    planner Raymond Unwin | architect Barry Parker | Raymond Unwin, of which the first two are spans of one answer."""
    (question,) = read_questions(lines(tmp_path / "qed-dev.jsonlines", qed()))
    accepted = ("Ida Vel and Per Mar", "Ida Vel", "Per Mar")
    assert question == Question(
        "-3290814144789249484", "who built the old bridge", accepted, "qed-dev", "Bridges of Orrin"
    )


def test_f37_qed_as_the_hub_has_it(tmp_path: Path):
    """google-research-datasets/qed on the hub calls it question and keeps the first answer's spans only."""
    record = {"question": "who built it", **qed(original_nq_answers=[span("Ida Vel"), span("Per Mar", 12)])}
    record.pop("question_text")
    assert answers_of(lines(tmp_path / "q.jsonl", record)) == ("Ida Vel", "Per Mar")


def test_f37_qed_brings_its_passages(tmp_path: Path):
    (passage,) = read_corpus(lines(tmp_path / "qed.jsonlines", qed()))
    assert (passage.title, passage.text) == ("Bridges of Orrin", "Ida Vel and Per Mar built the old bridge .")


# ---- F37: answers that are lists written as text


@pytest.mark.parametrize(
    ("column", "text", "accepted"),
    [
        # akariasai/PopQA: JSON in a TSV file
        ("possible_answers", '["one", "other"]', ("one", "other")),
        # pandas.DataFrame({"golden_answers": [["one", "it's"]]}).to_csv()
        ("golden_answers", "['one', \"it's\"]", ("one", "it's")),
        ("answers", "['one']", ("one",)),
        ("answer", "['one', 'other']", ("one", "other")),
        ("answer", '["one", "other"]', ("one", "other")),
        # the same of a parquet file's numpy arrays: no commas; Python alone would read 'oneother'
        ("golden_answers", "['one' 'other'\n \"it's\"]", ("one", "other", "it's")),
        ("golden_answers", "array(['one', 'other'], dtype=object)", ("one", "other")),
        # the hub's SQuAD through pandas
        ("answers", "{'text': array(['one', 'other'], dtype=object), 'answer_start': array([5, 9])}", ("one", "other")),
        ("answers", '{"text": ["one"], "answer_start": [5]}', ("one",)),
        # numbers where several answers are expected, but not where an interval may be the answer
        ("answers", "[1912, 1913]", ("1912", "1913")),
        ("answer", "[0, 1]", ("[0, 1]",)),
        # no lists, and nothing is executed
        ("answers", "one", ("one",)),
        ("answer", "[sic]", ("[sic]",)),
        ("answers", "[__import__('os').getcwd()]", ("[__import__('os').getcwd()]",)),
        ("answers", "[" * 5000 + "]" * 5000, ("[" * 5000 + "]" * 5000,)),
    ],
)
def test_f37_lists_written_as_text(column: str, text: str, accepted: tuple[str, ...], tmp_path: Path):
    assert answers_of(lines(tmp_path / "q.jsonl", {"question": "q?", column: text})) == accepted
    if len(text) < 100:
        table = io.StringIO()
        csv.writer(table).writerows([["question", column], ["q?", text]])
        (tmp_path / "q.csv").write_text(table.getvalue())
        assert answers_of(tmp_path / "q.csv") == accepted


def test_f37_a_list_without_an_answer_is_left_out(tmp_path: Path):
    records = [{"question": "q?", "answers": "[]"}, {"question": "r?", "answers": "['a']", "aliases": "['b']"}]
    (question,) = read_questions(lines(tmp_path / "q.jsonl", *records))
    assert (question.question, question.answers) == ("r?", ("a", "b"))


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        # SQuAD's answers in a flat record, which were taken for the text of the dictionary
        ([{"text": "one", "answer_start": 3}, {"text": "other", "answer_start": 9}], ("one", "other")),
        ([["one", "other"], ["third"]], ("one", "other", "third")),
        (["['one']"], ("['one']",)),  # a list's own text is an answer
    ],
)
def test_f37_nested_answers(value: Any, accepted: tuple[str, ...], tmp_path: Path):
    assert answers_of(lines(tmp_path / "q.jsonl", {"question": "q?", "answers": value})) == accepted


# ---- F37: rows of verl


def verl_row(asked: Any, truth: Any, **info: Any) -> dict[str, Any]:
    """Make rows as verl 0.9.1's examples/data_preprocess/gsm8k.py writes them."""
    prompt = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    style = {"style": "rule", "ground_truth": truth}
    return {"data_source": "openai/gsm8k", "prompt": prompt, "reward_model": style, "extra_info": {"index": 0, **info}}


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.mark.parametrize(
    ("row", "question", "accepted"),
    [
        (verl_row("How many?", "72"), "How many?", ("72",)),
        (verl_row("How many?", 72), "How many?", ("72",)),
        (verl_row("How many? Think step by step.", "72", question="How many?"), "How many?", ("72",)),
        # Search-R1's ground truth, and another system message
        (
            verl_row(
                [{"role": "system", "content": "Search."}, {"role": "user", "content": "Who?"}],
                {"target": ["Ida", "Ida Vel"]},
            ),
            "Who?",
            ("Ida", "Ida Vel"),
        ),
    ],
)
def test_f37_rows_of_verl(row: dict[str, Any], question: str, accepted: tuple[str, ...], tmp_path: Path):
    (read,) = read_questions(parquet(tmp_path / "train.parquet", row))
    assert (read.question, read.answers, read.source) == (question, accepted, "openai/gsm8k")
    (read,) = read_questions(tmp_path / "train.parquet", source="mine")
    assert read.source == "mine"


def test_f37_what_mtgrpo_data_wrote_is_read_again(tmp_path: Path):
    import pyarrow.parquet as pq

    asked = [{"title_text": f"t{n}", **qed(example_id=n, question_text=f"who {n}")} for n in range(20)]
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["data", str(lines(tmp_path / "qed.jsonlines", *asked)), "--out", str(out)]) == 0
    assert main(["data", str(out / "train.parquet"), "--val-fraction", "0", "--out", str(again)]) == 0
    first, second = (pq.read_table(folder / "train.parquet").to_pylist() for folder in (out, again))
    assert first == second


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            verl_row([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], "4"),
            "user, assistant",
        ),
        (verl_row([{"role": "system", "content": "Solve."}], "4"), "expected exactly one user message"),
        (verl_row([{"role": "user", "content": [{"type": "image"}]}], "4"), "expected exactly one user message"),
        (verl_row("Who?", None), "reward_model.ground_truth is None"),
    ],
)
def test_f37_rows_of_verl_that_ask_no_question(row: dict[str, Any], says: str, tmp_path: Path):
    with pytest.raises(DataError, match=says) as error:
        list(read_questions(lines(tmp_path / "q.jsonl", row)))
    assert "line 1" in str(error.value)


# ---- F38 and E33: the doctor's findings about question files


def squad(*answers: str) -> dict[str, Any]:
    qa = {"id": "1", "question": "who?", "answers": [{"text": one, "answer_start": 0} for one in answers]}
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "Ida.", "qas": [qa]}]}]}


def doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path, *overrides: str) -> list[dict[str, str]]:
    pytest.importorskip("verl")
    folder = str(tmp_path / "model")  # there is none, which is one failure
    capsys.readouterr()
    main(
        [
            "doctor",
            "--quick",
            "--json",
            "--preset",
            "mt_grpo",
            "--",
            f"actor_rollout_ref.model.path={folder}",
            *overrides,
        ]
    )
    return json.loads(capsys.readouterr().out)["findings"]


@pytest.mark.compose
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("part", ["train", "val"])
def test_f38_a_question_set_is_called_one(part: str, indent: int | None, tmp_path: Path, capsys):
    """SQuAD's file on one line was called a table without the columns of verl, one with indentation broken JSON."""
    file = tmp_path / "dev.json"
    file.write_text(json.dumps(squad("Ida"), indent=indent))
    (said,) = (one for one in doctor(capsys, tmp_path, f"data.{part}_files={file}") if str(file) in one["message"])
    assert said["message"] == f"{file} is a question set, not a file of rows for verl"
    asked = f"mtgrpo data {'' if part == 'train' else 'QUESTIONS --test '}{file} --out DIR"
    assert asked in said["fix"] and f"data.{part}_files=DIR/{part}.parquet" in said["fix"]


@pytest.mark.compose
def test_f38_a_test_set_whose_answers_are_secret(tmp_path: Path, capsys):
    file = tmp_path / "test.json"
    file.write_text(json.dumps(squad()))
    (said,) = (one for one in doctor(capsys, tmp_path, f"data.val_files={file}") if str(file) in one["message"])
    assert "question set without a public answer" in said["message"]
    with pytest.raises(DataError, match="test set whose answers are secret"):
        list(read_questions(file))


@pytest.mark.compose
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize("name", ["squad2_cs224n_dev.json", "xquad.en.json", "nq-open-oracle.jsonl.gz"])
def test_f38_real_question_sets(name: str, tmp_path: Path, capsys):
    found = doctor(capsys, tmp_path, f"data.val_files={SHARED / name}")
    (said,) = (one for one in found if name in one["message"])
    right = "is a question set" if not name.endswith(".gz") else "verl reads .parquet, .json and .jsonl, but not .gz"
    assert right in said["message"]


GOOD = {**verl_row("Who?", "Ida"), "data_source": "nq"}


@pytest.mark.compose
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"data_source": "nq", "reward_model": GOOD["reward_model"]}, "has no column prompt"),
        ({**GOOD, "prompt": None}, "row 2: the column prompt holds None, which is not a list of messages"),
        ({**GOOD, "prompt": [{"role": "user", "content": 5}]}, "row 2: the column prompt holds [{"),
        ({**GOOD, "extra_info": "{}"}, "row 2: extra_info is '{}', expected a mapping"),
        ({**GOOD, "reward_model": "Ida"}, "row 2: reward_model is 'Ida', expected a mapping"),
        ({**GOOD, "extra_info": {"tool_selection": "search"}}, "tool_selection is 'search', expected a list of tool"),
        ({**GOOD, "reward_model": None}, "reward_model.ground_truth is None"),
        ("Who?", "has a str per entry instead of rows"),
    ],
)
def test_e33_rows_that_verl_would_stumble_over(row: Any, says: str, tmp_path: Path, capsys):
    rows = [row] if says.startswith(("has no", "has a str")) else [GOOD, row]
    file = lines(tmp_path / "q.jsonl", *rows)
    found = doctor(capsys, tmp_path, f"data.train_files={file}")
    assert [one for one in found if says in one["message"] and one["status"] == "fail"]
    assert not [one for one in found if "report" in one["fix"]]


@pytest.mark.compose
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.train_batch_size=abc", "data.train_batch_size is 'abc', expected a whole number of at least 1"),
        ("actor_rollout_ref.rollout.n=null", "actor_rollout_ref.rollout.n is null, expected a whole number"),
        ("data.max_prompt_length=null", "data.max_prompt_length is null"),
        ("actor_rollout_ref.rollout.multi_turn.max_tool_response_length=abc", "max_tool_response_length is 'abc'"),
        ("actor_rollout_ref.rollout.max_model_len=abc", "max_model_len is 'abc', expected a whole number of at least"),
        ("data.train_files=5", "data.train_files is 5, expected a path, or a list of paths"),
        ("actor_rollout_ref.rollout.multi_turn.tool_config_path=5", "tool_config_path is 5, expected a text, or null"),
        ("data.apply_chat_template_kwargs=5", "data.apply_chat_template_kwargs is 5, expected a mapping, or null"),
    ],
)
def test_e33_values_of_the_wrong_kind(override: str, says: str, tmp_path: Path, capsys):
    file = lines(tmp_path / "q.jsonl", GOOD)
    found = doctor(capsys, tmp_path, f"data.train_files={file}", f"data.val_files={file}", f"++{override}")
    assert [one for one in found if says in one["message"] and one["status"] == "fail"]
    assert not [one for one in found if "report" in one["fix"]]
