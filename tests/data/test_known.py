"""Read sets by name, from small copies in the layouts that their repositories' cards describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from verl_mtgrpo.data.dataset import write_dataset
from verl_mtgrpo.data.known import EDITIONS, KNOWN, local_files
from verl_mtgrpo.data.rows import DEFAULT_SYSTEM_PROMPT
from verl_mtgrpo.errors import DataError

datasets = pytest.importorskip("datasets")

FLASHRAG = {
    "nq": ("train", "dev", "test"),
    "triviaqa": ("train", "dev", "test"),
    "popqa": ("test",),
    "hotpotqa": ("train", "dev"),
    "2wikimultihopqa": ("train", "dev"),
    "musique": ("train", "dev"),
    "bamboogle": ("test",),
}
"""Splits by configuration, from the card of RUC-NLPIR/FlashRAG_datasets."""
SIZES = {"train": 5, "dev": 2, "validation": 2, "test": 2}

CONTEXT = {"title": ["T"], "sentences": [["A sentence."]]}
ORIGINAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    # repository, place of its files, columns besides the question; $ becomes the answer
    "nq": ("google-research-datasets/nq_open", "nq_open/{}-00000-of-00001.parquet", {"answer": ["$", "also $"]}),
    "triviaqa": (
        "mandarjoshi/trivia_qa",
        "unfiltered.nocontext/{}-00000-of-00001.parquet",
        {"question_id": "tc_$", "answer": {"value": "$", "aliases": ["also $", "$"], "normalized_value": "x"}},
    ),
    "popqa": ("akariasai/PopQA", "{}.tsv", {"id": "7$", "possible_answers": '["$", "also $"]', "s_pop": "12"}),
    "hotpotqa": (
        "hotpotqa/hotpot_qa",
        "distractor/{}-00000-of-00001.parquet",
        {"id": "h$", "answer": "$", "type": "bridge", "context": CONTEXT},
    ),
    "2wikimultihopqa": (
        "framolfese/2WikiMultihopQA",
        "data/{}-00000-of-00001.parquet",
        {"id": "w$", "answer": "$", "type": "inference", "context": CONTEXT},
    ),
    "musique": (
        "dgslibisey/MuSiQue",
        "musique_ans_v1.0_{}.jsonl",
        {"id": "2hop__$", "answer": "$", "answer_aliases": ["also $"], "answerable": True},
    ),
    "bamboogle": ("chiayewken/bamboogle", "data/{}-00000-of-00001-fd9def31e0acf72c.parquet", {"Answer": "$"}),
}
ALIASES = {"nq", "triviaqa", "popqa", "musique"}
CONFIGS = {"nq": "nq_open", "triviaqa": "unfiltered.nocontext", "hotpotqa": "distractor"}


def fill(value: Any, answer: str) -> Any:
    if isinstance(value, str):
        return value.replace("$", answer)
    if isinstance(value, list):
        return [fill(item, answer) for item in value]
    return {key: fill(item, answer) for key, item in value.items()} if isinstance(value, dict) else value


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".tsv":
        datasets.Dataset.from_list(rows).to_csv(path, sep="\t", index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_card(folder: Path, files: dict[str, dict[str, str]]) -> None:
    """The card's list of configurations, {configuration: {split: path}}, which ``datasets`` reads."""
    lines = ["---", "configs:"]
    for config, splits in files.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def make_flashrag(folder: Path) -> None:
    for name, splits in FLASHRAG.items():
        for split in splits:
            rows = [
                {"id": f"{split}_{n}", "question": f"{name} {split} {n}?", "golden_answers": [f"{n}", f"also {n}"]}
                for n in range(SIZES[split])
            ]
            write(folder / name / f"{split}.jsonl", rows)
    write_card(
        folder, {name: {split: f"{name}/{split}.jsonl" for split in splits} for name, splits in FLASHRAG.items()}
    )


def make_original(folder: Path, name: str) -> None:
    _, path, columns = ORIGINAL[name]
    made = {}
    for split in ("test",) if name in ("popqa", "bamboogle") else ("train", "validation"):
        asked = "Question" if name == "bamboogle" else "question"
        rows = [{asked: f"{name} {split} {n}?", **fill(columns, str(n))} for n in range(SIZES[split])]
        file = path.format("dev" if name == "musique" and split == "validation" else split)
        write(folder / file, rows)
        made[split] = file
    write_card(folder, {CONFIGS.get(name, "default"): made})


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with the hub's names as folders, which ``datasets`` prefers, so the real loading code runs."""
    monkeypatch.chdir(tmp_path)
    make_flashrag(tmp_path / "RUC-NLPIR" / "FlashRAG_datasets")
    for name, (repo, _, _) in ORIGINAL.items():
        make_original(tmp_path / repo, name)
    return tmp_path


def test_every_set_by_name_in_both_editions(offline_hub: Path):
    for edition in EDITIONS:
        for name in KNOWN:
            out = offline_hub / "out" / edition / name
            manifest = write_dataset([name], out, edition=edition)
            train = rows_of(out / "train.parquet") if name not in ("popqa", "bamboogle") else []
            val = rows_of(out / "val.parquet")
            own = "dev" if name in ("hotpotqa", "2wikimultihopqa", "musique") else "test"
            split = own if edition == "flashrag" or not train else "validation"
            questions = [f"{name} train {n}?" for n in range(5)] if train else []
            assert [row["extra_info"]["question"] for row in train] == questions
            assert [row["extra_info"]["question"] for row in val] == [f"{name} {split} {n}?" for n in range(2)]
            answers = ["1", "also 1"] if edition == "flashrag" or name in ALIASES else ["1"]
            assert val[1]["reward_model"]["ground_truth"] == {"target": answers}
            assert {row["data_source"] for row in [*train, *val]} == {name}
            assert [part["role"] for part in manifest["sources"]] == (["train", "val"] if train else ["val"])
            assert manifest["sources"][-1]["dataset"] == KNOWN[name][edition].repo
    assert val[0]["extra_info"]["id"]  # made from the content where the set has none


def test_local_files_give_the_same_as_the_hub_byte_for_byte(offline_hub: Path):
    for edition in EDITIONS:
        local = offline_hub / "RUC-NLPIR" / "FlashRAG_datasets"
        if edition == "original":
            local = offline_hub / "qa"
            local.mkdir()
            for name, (repo, _, _) in ORIGINAL.items():
                (offline_hub / repo).rename(local / name)
                (local / name / ".cache").mkdir()  # as `hf download --local-dir` leaves it
                (local / name / ".cache" / "train.json").write_text("{}")
            for name, (repo, _, _) in ORIGINAL.items():
                make_original(offline_hub / repo, name)
        sets = ["nq", "hotpotqa", "musique"]
        tests = ["triviaqa", "popqa", "2wikimultihopqa", "bamboogle"]
        hub = write_dataset(sets, offline_hub / "a", tests=tests, edition=edition)
        here = write_dataset(sets, offline_hub / "b", tests=tests, edition=edition, local=local)
        for name in ("train.parquet", "val.parquet"):
            assert (offline_hub / "a" / name).read_bytes() == (offline_hub / "b" / name).read_bytes()
        assert here["splits"]["train"]["by_source"] == {"nq": 5, "hotpotqa": 5, "musique": 5}
        assert here["splits"]["val"]["by_source"] == dict.fromkeys([*sets, *tests], 2)
        sums = [[part["questions_sha256"] for part in made["sources"]] for made in (hub, here)]
        assert sums[0] == sums[1]
        assert str(offline_hub) not in (offline_hub / "b" / "manifest.json").read_text()


def test_a_second_run_is_byte_identical(offline_hub: Path):
    for out in ("a", "b"):
        write_dataset(["nq", "popqa"], offline_hub / out, tests=["musique"], max_train=3, max_val=4, seed=7)
    for name in ("train.parquet", "val.parquet", "manifest.json"):
        assert (offline_hub / "a" / name).read_bytes() == (offline_hub / "b" / name).read_bytes()
    assert [len(rows_of(offline_hub / "a" / f"{name}.parquet")) for name in ("train", "val")] == [3, 4]


def test_the_whole_row(offline_hub: Path):
    write_dataset(["nq"], offline_hub / "out", tools=["search"])
    truth = {"target": ["0", "also 0"]}
    assert rows_of(offline_hub / "out" / "val.parquet")[0] == {
        "data_source": "nq",
        "prompt": [
            {"role": "system", "content": DEFAULT_SYSTEM_PROMPT},
            {"role": "user", "content": "nq test 0?"},
        ],
        "ability": "qa",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {
            "index": 0,
            "split": "val",
            "id": "test_0",
            "question": "nq test 0?",
            "article": "",
            "tools_kwargs": {
                "search": {
                    "create_kwargs": {"ground_truth": truth, "question": "nq test 0?", "data_source": "nq"},
                },
            },
            "tool_selection": ["search"],
        },
    }


def test_a_folder_by_save_to_disk(tmp_path: Path):
    def table(split: str) -> Any:
        return datasets.Dataset.from_list([{"id": split, "question": f"{split}?", "golden_answers": ["x"]}])

    splits = datasets.DatasetDict({split: table(split) for split in ("train", "test")})
    splits.save_to_disk(str(tmp_path / "qa" / "nq"))
    write_dataset(["nq"], tmp_path / "out", local=tmp_path / "qa")
    for file, split in (("train", "train"), ("val", "test")):
        assert [row["extra_info"]["id"] for row in rows_of(tmp_path / "out" / f"{file}.parquet")] == [split]


def test_parts_of_a_split_are_read_in_order(tmp_path: Path):
    for part in range(3):
        file = tmp_path / "nq" / f"train-{part:05}-of-00003.parquet"
        write(file, [{"question": f"q{part}", "answer": ["x"]}])
    assert [file.name[6:11] for file in local_files(tmp_path, "nq", "train")] == ["00000", "00001", "00002"]


def test_local_folders_that_do_not_say_what_to_read(tmp_path: Path):
    with pytest.raises(DataError, match=r"nq is not a folder, expected the files of nq there, for example test.jsonl"):
        local_files(tmp_path, "nq", "test")
    folder = tmp_path / "nq"
    folder.mkdir()
    (folder / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no file of the split 'test' \(found: train.jsonl\).* set --edition"):
        local_files(tmp_path, "nq", "test")
    (folder / "more").mkdir()
    (folder / "more" / "train.json").write_text("")
    with pytest.raises(
        DataError, match=r"several files of the split 'train': more/train.json, train.jsonl; keep only one"
    ):
        local_files(tmp_path, "nq", "train")
