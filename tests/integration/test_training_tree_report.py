"""A real run's dump of trees in the report: every leaf is there, and every working gives what was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("verl")

from tests.integration.runs import run
from verl_mtgrpo.report.catalog import read_catalog
from verl_mtgrpo.report.dump_files import dump_files
from verl_mtgrpo.report.html import write_page
from verl_mtgrpo.report.tree import tree_of
from verl_mtgrpo.report.why import explain_group

pytestmark = [pytest.mark.imports_verl, pytest.mark.verl]


@pytest.mark.slow  # a minute of verl; what the report says of trees is tested without a run as well
def test_at2po_with_log_probs_in_the_dump(assets: Path, tmp_path: Path):
    """``at2po`` weighs children by surprisal, which the report knows from the dump alone.

    The tree grows as ARPO's does: with two turns AT2PO's own growth writes first turns again, and nothing is shared.
    """
    grow = ["trainer.turn.branch.grow=arpo", "trainer.turn.branch.probability=0.9"]
    dump = [f"trainer.rollout_data_dir={tmp_path / 'rollouts'}", "trainer.turn.dump.groups=0"]
    result = run(assets, tmp_path, *grow, *dump, preset="at2po")
    assert result.returncode == 0, result.tail()
    files = dump_files(tmp_path / "rollouts")
    catalog = read_catalog(files)
    assert len(list(catalog.entries())) == sum(len(file.read_text().splitlines()) for file in files)
    shared = explained = 0
    for group, rollouts in catalog.read_groups(catalog.groups):
        tree, note = tree_of(rollouts)
        assert tree is not None and not note
        shared += tree.is_shared
        why = explain_group(rollouts, [entry.advantages for entry in group.entries], group.estimator)
        for rollout, some in zip(rollouts, why, strict=True):
            if rollout.dropped is None:
                assert all(one.terms and one.adds_up for one in some), [one.words for one in some]
                explained += len(some)
    assert shared and explained
    write_page(tmp_path / "r.html", catalog, title="at2po", made_by="tests")
    assert json.loads((tmp_path / "rollouts" / "1.jsonl").read_text().splitlines()[0])["turn_surprisal"]
