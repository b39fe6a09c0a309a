"""Test the sentences about a calibration, and that a hostile dump cannot put words into them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.report.calibrated import OPPOSED, trained
from tests.report.hostile import HOSTILE, hostile_rows
from tests.report.made import write_rows
from verl_mtgrpo.report.calibration import calibrate
from verl_mtgrpo.report.calibration_tables import advice, as_dict, to_markdown
from verl_mtgrpo.report.catalog import read_catalog


def test_advice_where_they_oppose(tmp_path: Path) -> None:
    """50 groups in which what turn 1 was paid is the opposite of the outcome, and 10 times smaller."""
    opposed = {f"g{n}": [[0.1, 0.0], [0.0, 1.0]] for n in range(50)}
    said = advice(trained(tmp_path, opposed, name="turn_rloo"))
    assert said == [
        "What turn 1 was paid correlates negatively with the outcome in group-mates (r = −1.00 ± 0.14, 50 groups): "
        "rollouts that earn more this way do worse in the end. Either this pays for the wrong thing, or for a skill "
        "that does not pay off yet: read such rollouts before you change a weight.",
        "At turn 1, 100 % of the 100 rollouts that earned more or less there than their group-mates have an advantage "
        "of the opposite sign: what came later outweighs what the turn was paid; if the turn reward is to be trusted, "
        "give it more weight.",
        "For turn_rloo, turn rewards vary 0.1 times as much as the outcome within groups; both count alike with turn "
        "rewards 10 times as large; that is no reason to do it while they correlate negatively.",
    ]


def test_advice_where_they_agree(tmp_path: Path) -> None:
    agree = {f"g{n}": [[0.5, 1.0], [0.0, 0.0]] for n in range(50)}
    more = [{"tool/hit": float(n % 2 == 0), "tool/used": float(n % 2)} for n in range(100)]
    said = advice(trained(tmp_path, agree, more=more))
    assert said == [
        "What turn 1 was paid correlates positively with the outcome in group-mates (r = +1.00 ± 0.14, 50 groups): "
        "both ask for the same.",
        "Using the tool correlates negatively with the outcome in group-mates (r = −1.00 ± 0.14, 50 groups): the "
        "outcome alone teaches this policy to stop using it.",
        "An answer in the results (tool/hit) correlates positively with the outcome in group-mates (r = +1.00 ± 0.14, "
        "50 groups): a turn reward for it asks for what the outcome asks for.",
        "For mt_grpo, turn rewards vary 1 times as much as the outcome within groups, so both count about alike; "
        "exactly alike: turn_coef = 1 (now 1).",
    ]


def test_advice_where_they_have_nothing_to_do_with_each_other(tmp_path: Path) -> None:
    """All four combinations in each of 150 groups: r = 0, and 600 - 150 rollouts are enough to say so (2/√450 < .1)."""
    group = [[0.5, 1.0], [0.5, 0.0], [0.0, 1.0], [0.0, 0.0]]
    said = advice(trained(tmp_path, {f"g{n}": group for n in range(150)}))
    assert said[0] == (
        "What turn 1 was paid does not correlate with the outcome in group-mates (r = 0.00 ± 0.05, 150 groups): in "
        "these rollouts the outcome does not depend on what this pays for."
    )
    few = advice(trained(tmp_path, {f"g{n}": group for n in range(5)}))
    assert not any("correlate" in sentence for sentence in few), "few rollouts say neither"


def test_several_turns_are_told_one_by_one_and_in_total(tmp_path: Path) -> None:
    three = {f"g{n}": [[0.5, 0.0, 1.0], [0.0, 0.5, 0.0]] for n in range(50)}
    said = advice(trained(tmp_path, three))
    assert "What turn 1 was paid correlates positively" in said[0]
    assert "What turn 2 was paid correlates negatively" in said[1]
    assert not any(sentence.startswith("Turn rewards") for sentence in said), "in total they are all alike"


# ---- what is written


def test_the_words_of_a_hostile_dump_are_no_markup(tmp_path: Path) -> None:
    rows = [row for text in HOSTILE for row in hostile_rows(text)]
    rows += [{**row, "outcome/dropped": 0.0, f"tool/{HOSTILE[1]}|`*": float(n)} for n, row in enumerate(rows)]
    for n, row in enumerate(rows):
        row["uid"] = f"g_{n}_0"
    (got,) = calibrate(read_catalog([write_rows(tmp_path / "1.jsonl", rows)]).groups)
    names = [one.name for one in got.correlations] + [one.estimator for one in got.balances]
    assert all(re.fullmatch(r"[\w/.:+ \N{REPLACEMENT CHARACTER}-]+", name) for name in names)
    text = "\n".join(to_markdown([got]))
    assert not set("<>`\x1b\u202e\u2028") & set(text)
    text.encode()  # no half surrogate


def test_as_json_it_has_numbers_and_advice(tmp_path: Path) -> None:
    got = as_dict(trained(tmp_path, OPPOSED))
    assert got["correlations"][0]["r"] == pytest.approx(-0.5) and got["balances"][0]["weight"] == "turn_coef"
    assert got["advice"] == advice(trained(tmp_path, OPPOSED))
