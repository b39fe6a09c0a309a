from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from tests.report.made import dump_row, rollout_of, training_row, transcript, write_rows
from tests.report.roles import role_rows
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.terminal import print_catalog, print_rollouts
from verl_mtgrpo.rewards.transcript import ToolCall, Transcript, Turn


def shown(path: Path, count: int = 4, *, width: int = 200, colours: bool = False, overview: bool = False) -> str:
    out = io.StringIO()
    system = "truecolor" if colours else None
    console = Console(file=out, width=width, highlight=False, force_terminal=colours, color_system=system)
    catalog = read_catalog([path])
    if overview:
        print_catalog(catalog, console)
    else:
        print_rollouts(catalog, count, console)
    return out.getvalue()


def group(*, answer: str = "Vel", query: str = "Orrin river") -> list[dict[str, object]]:
    return [
        dump_row("same", 0, transcript("Mar"), [1.0]),
        dump_row("same", 1, transcript("Mar"), [1.0]),
        dump_row("differs", 0, transcript(answer, searches=[query]), [0.5, 1.0]),
        dump_row("differs", 1, transcript("Mar"), [0.0]),
    ]


def test_shows_what_was_said_and_what_it_was_worth(tmp_path: Path) -> None:
    lines = [line.rstrip() for line in shown(write_rows(tmp_path / "0.jsonl", group()), 1).splitlines()]
    assert lines == [
        "",
        "rollout 0 of the question",
        "question: Which river runs by Orrin?",
        "accepted: Vel | the Vel",
        "  turn 1   reward +0.50   advantage +1.41",
        "    why: Turn 1 was paid 0.50; the 2 rollouts that got this far (1 ended there: counted as 0) averaged 0.25 ± "
        "0.35: +0.71. The last turn was paid 1.00, outcome included; the 2 rollouts averaged 0.50 ±",
        "    0.71: +0.71. Together +1.41.",
        "    model: <tool_call>Orrin river</tool_call>",
        "    search: Doc 1 (Title: Orrin) Vel is a river.",
        "  turn 2   reward +1.00   advantage +0.71",
        "    why: The last turn was paid 1.00, outcome included; the 2 rollouts averaged 0.50 ± 0.71: +0.71.",
        "    model: <answer>Vel</answer>",
        "  measured: outcome/em 1, tool/used 1",
    ]


def test_an_output_is_called_by_its_role(tmp_path: Path) -> None:
    text = shown(write_rows(tmp_path / "3.jsonl", role_rows()), 5)
    assert "step 3, rewriter 0 of the question" in text and "step 3, answerer 2 of the question" in text


def test_says_what_the_reward_function_says_on_one_line_each(tmp_path: Path) -> None:
    broken = ToolCall("sql", "{}", "Error", ok=False, error_kind="tool_error", why="no table\x1b[2J")
    said = json.dumps({"turns": ["judge -1\n: no\x1b[2J", "the last"], "outcome": "judge 0: wrong"})
    row = dump_row("p", 0, rollout_of("Mar", broken), [-1.0, 0.0], turn_notes=said)
    lines = [line.strip() for line in shown(write_rows(tmp_path / "0.jsonl", [row]), 1).splitlines()]
    assert "reward function: judge -1 : no\ufffd[2J" in lines
    assert "reward function: the last" in lines and "outcome: judge 0: wrong" in lines
    assert "sql: [tool_error: no table\ufffd[2J] Error" in lines


def test_both_ends_of_the_group_that_differs_come_first(tmp_path: Path) -> None:
    text = shown(write_rows(tmp_path / "0.jsonl", group()), 3)
    ends = [line.split()[-1] for line in text.splitlines() if "advantage" in line]
    assert ends == ["+1.41", "+0.71", "−1.41", "0.00"]


def test_two_rollouts_of_a_question_can_be_told_apart(tmp_path: Path) -> None:
    """With the numbers that the page shows, too: verl counts the rollouts of a question from 0."""
    training = [training_row("q", n, transcript("x"), [1.0 * n], [1.0 * n], step=7) for n in range(2)]
    text = shown(write_rows(tmp_path / "7.jsonl", training), 2)
    assert "step 7, rollout 0 of the question" in text and "step 7, rollout 1 of the question" in text


def test_advantages_are_coloured(tmp_path: Path) -> None:
    text = shown(write_rows(tmp_path / "0.jsonl", group()), 3, colours=True)
    assert "\x1b[1;38;2;86;180;233madvantage +1.41" in text and "\x1b[1;38;2;230;159;0madvantage −1.41" in text


def test_a_terminal_is_given_neither_control_characters_nor_markup(tmp_path: Path) -> None:
    evil = "\x1b[2J[bold red]gone[/][/nothing]\x07\u202e"
    call = ToolCall(evil, evil, evil, error=evil)
    rollout = Transcript((Turn(evil, (0, 1), (call,)),), "answered", ({"role": "user", "content": evil},))
    rows = [dump_row("p", n, rollout, [float(n)], **{f"tool/{evil}": 1.0, "gts": {"target": [evil]}}) for n in range(2)]
    text = shown(write_rows(tmp_path / "0.jsonl", rows))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert text.count("[bold red]gone[/][/nothing]") >= 8, "markup is text"


def test_the_overview(tmp_path: Path) -> None:
    rows = [
        training_row("a", 0, transcript("Vel", searches=["x"]), [0.5, 1.0], [1.5, 0.5], step=3),
        training_row("a", 1, transcript("Mar"), [0.0], [-1.5], step=3),
    ]
    text = shown(write_rows(tmp_path / "3.jsonl", rows), overview=True)
    assert "2 rollouts of 1 groups, 0 dropped; step 3, 1 file" in text
    assert "advantages as trained on by mt_grpo (discount = 1.0)" in text
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    # Turn 1: rewards 0.5 and 0, advantages 1.5 and -1.5, whose standard deviation is 3 / sqrt(2).
    assert cells[-2] == ["1", "2", "0.250", "0.000", "1.500", "2.121", "0%"]
    assert cells[-1] == ["2", "1", "1.000", "+0.500", "0.500", "0.000", "–"]
