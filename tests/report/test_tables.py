from __future__ import annotations

from verl_mtgrpo.report.metrics import RunMetrics
from verl_mtgrpo.report.tables import markdown_table, mean_and_spread, start_end_rows, text_table


def test_text_table_aligns_columns() -> None:
    assert text_table(["what", "n"], [["long name", "1"], ["b", "10"]]).splitlines() == [
        "what        n",
        "---------  --",
        "long name   1",
        "b          10",
    ]


def test_markdown_table() -> None:
    assert markdown_table(["what", "n"], [["a", "1"]]) == "| what | n |\n| --- | ---: |\n| a | 1 |"


def test_start_end_rows_take_the_first_and_last_validation() -> None:
    metrics = RunMetrics(validation={"tool/used": {0: 0.25, 20: 0.5, 40: 1.0}, "outcome/em": {0: 0.3, 40: 0.2}})
    assert start_end_rows(metrics) == [
        ["tool execution", "0.250", "1.000", "+0.750"],
        ["exact match", "0.300", "0.200", "-0.100"],
    ]


def test_mean_and_spread() -> None:
    assert mean_and_spread([]) == "–"
    assert mean_and_spread([0.5]) == "0.500"
    assert mean_and_spread([0.2, 0.4, 0.9]) == "0.500 (0.200 to 0.900)"
