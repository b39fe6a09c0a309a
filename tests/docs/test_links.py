"""Every link of a page leads somewhere, and every page is in the site's menu."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ALL_PAGES, PAGES, README, ROOT, anchors, links, name_of


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{name_of(page)} links to {link}, out of the repository"
        assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {link}, a heading that is not there"


def test_a_link_without_a_target_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two: `three`\n[here](#one-two-three) `[no](link)` ![picture](no.png)\n")
    assert (links(page), anchors(page)) == (["#one-two-three", "no.png"], {"one-two-three"})


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r"[\w/-]+\.md", (ROOT / ".ci" / "mkdocs.yml").read_text()))
    here = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page != README}
    assert {page for page in here if not page.startswith("decisions/")} | {"decisions/README.md"} == menu


def test_the_front_page_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_wandb_is_never_named_without_what_it_needs():
    """wandb asks for a login on the terminal, in a training process too."""
    texts = {name_of(page): page.read_text(encoding="utf-8") for page in ALL_PAGES if page.name != "reference.md"}
    naming = [name for name, text in texts.items() if "wandb" in text]
    assert "README.md" in naming
    assert not [name for name in naming if not all(way in texts[name] for way in ("wandb login", "WANDB_MODE=offline"))]
