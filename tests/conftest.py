from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def the_verl_in_front_counts_as_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """``make test-verl-main``: that this verl was never tested is no failure of a test about something else."""
    from verl_mtgrpo.doctor import versions

    if versions.verl_in_front():
        monkeypatch.setattr(versions, "verl_in_front", lambda: None)
