from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy that speaks hermes, with its index and questions; made once for all end-to-end tests."""
    from tests.integration.test_training import make_assets
    from verl_mtgrpo.demo.toy import HERMES

    return make_assets(tmp_path_factory.mktemp("assets"), HERMES)
