from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from verl_mtgrpo.retrieval import BM25Index


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny policy that uses the format hermes, with index and questions, once for all end-to-end tests."""
    from tests.integration.runs import make_assets
    from verl_mtgrpo.demo.toy import HERMES

    return make_assets(tmp_path_factory.mktemp("assets"), HERMES)


@pytest.fixture
def index(tmp_path: Path) -> BM25Index:
    from verl_mtgrpo.retrieval import BM25Index, Passage

    passages = [Passage(str(n), f"Tower {n}", f"tower of Pim number{n} it is in Oslo") for n in range(20)]
    return BM25Index.build(passages, tmp_path / "index", source="test")
