"""A page of a report as a browser's parser sees it."""

from __future__ import annotations

import base64
import json
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """A page as a browser's parser sees it: elements, and the content of its scripts by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.code: list[str] = []
        self.policy = ""
        self._open: dict[str, str | None] | None = None
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""
        if tag == "script":
            self._open = named

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None and "id" in self._open:
            self.scripts[self._open["id"] or ""] = data
        elif self._open is not None:
            self.code.append(data)

    @property
    def index(self) -> dict[str, Any]:
        return json.loads(self.scripts["index"])

    def group(self, number: int) -> dict[str, Any]:
        return json.loads(zlib.decompress(base64.b64decode(self.scripts[f"g{number}"])))
