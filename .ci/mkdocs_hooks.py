"""Take the files of the repository that pages link to into the site, so that no link leads out of it.

docs/*.md link to recipes, examples and source files as on GitHub (``../recipes/README.md``). In the site, files of
docs/ stand at its root and all others beside them, under their path in the repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TARGET = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def in_site(path: Path) -> str:
    """Return where a file of the repository stands in the site."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def in_repository(uri: str) -> Path:
    """Return the file of the repository that stands at this place of the site."""
    return DOCS / uri if (DOCS / uri).exists() else ROOT / uri


def linked(page: Path) -> list[Path]:
    """Return the files that a page of the repository links to."""
    return [(page.parent / target).resolve() for target in TARGET.findall(page.read_text(encoding="utf-8"))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what those pages link to in turn."""
    queue = [in_repository(file.src_uri) for file in files.documentation_pages()]
    while queue:
        for path in linked(queue.pop()):
            if path.is_file() and path.is_relative_to(ROOT) and files.get_file_from_path(in_site(path)) is None:
                files.append(File.generated(config, in_site(path), abs_src_path=str(path)))
                queue += [path] if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at places of the site."""
    here = in_repository(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = (here.parent / match[1]).resolve()
        if not path.is_relative_to(ROOT):
            return match[1]
        return os.path.relpath(in_site(path), os.path.dirname(page.file.src_uri) or ".")

    return TARGET.sub(moved, markdown)
