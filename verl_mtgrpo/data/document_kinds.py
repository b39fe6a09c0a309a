"""Read one document as text, with its title: plain text, Markdown, HTML, PDF."""

from __future__ import annotations

import logging
import re
from pathlib import Path

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---[ \t]*\r?\n", re.DOTALL | re.MULTILINE)
_FIRST_HEADING = re.compile(r"^ {0,3}#[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
# Parts of a web page that are not what it says.
_NOT_CONTENT = (
    *("script", "style", "noscript", "template", "svg", "iframe", "object", "form", "button", "select"),
    *("nav", "aside", "footer", "[role=navigation]", "[hidden]", "a.headerlink"),
)
_CONTENT = ("main", "[role=main]", "article", "body")


class Unreadable(Exception):
    """A document cannot be read; the message is the reason, as a predicate: ``has no text``."""


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; raise ``Unreadable`` for any other: replaced characters could not be found."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 text ({error.reason} at byte {error.start + 1})") from error


def read_markdown(path: Path) -> tuple[str, str]:
    """Return the title, which is the front matter's or the first heading's, and the text without front matter."""
    text = read_text(path)
    front = _FRONT_MATTER.match(text)
    body = text[front.end() :] if front else text
    named = re.search(r"^title:[ \t]*(.+)$", front[1], re.MULTILINE) if front else None
    if named:
        return named[1].strip().strip("\"'"), body
    heading = _FIRST_HEADING.search(body)
    return heading[1] if heading else "", body


def read_html(path: Path) -> tuple[str, str]:
    """Return the title and the main content as Markdown, without navigation, scripts, links' addresses and pictures."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(path.read_bytes(), "html.parser")
    for part in page.select(", ".join(_NOT_CONTENT)):
        part.decompose()
    title = page.title.get_text() if page.title else ""
    content = next((found for name in _CONTENT if (found := page.select_one(name)) is not None), page)
    if content is page and page.title is not None:
        page.title.decompose()
    # The text is searched and read as it is, never rendered: nothing has to be escaped.
    converter = MarkdownConverter(
        heading_style="ATX",
        strip=["a", "img"],
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
    )
    text = converter.convert_soup(content)
    return title, re.sub(r"\n{3,}", "\n\n", text).strip()


def read_pdf(path: Path) -> tuple[str, list[tuple[int, str]]]:
    """Return the title and the pages that have text, each with its number from 1."""
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every oddity of a file that it can read
    try:
        with path.open("rb") as file:
            reader = PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise Unreadable("is encrypted: it asks for a password")
            title = str((reader.metadata and reader.metadata.title) or "")
            pages = [(number, page.extract_text()) for number, page in enumerate(reader.pages, start=1)]
    except (Unreadable, OSError, RecursionError):
        raise
    except Exception as error:  # a damaged file can break a parser anywhere
        raise Unreadable(f"is damaged or no PDF ({type(error).__name__}: {str(error)[:100]})") from error
    if not any(text.strip() for _, text in pages):
        raise Unreadable(f"has {len(pages)} pages without text: it may be a scan, which needs OCR first")
    return title, [(number, text) for number, text in pages if text.strip()]
