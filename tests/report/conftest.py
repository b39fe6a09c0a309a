"""Share a real browser and an opened report between the tests of the report's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import Watched, chromium, watched_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture
def seen(browser: Any, report: Path) -> Iterator[Watched]:
    """The module's report, opened; whatever is done with it, it never complains and never asks for anything."""
    with watched_page(browser) as watched:
        watched.page.goto(report.as_uri())
        yield watched
        assert watched.console == [] and watched.dialogs == []
        assert {url.split("#")[0] for url in watched.requests} == {report.as_uri()}
