"""A real Chromium that watches what a page does."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# As root, in a container, without a screen, and without the browser's own talk to its maker.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = Path(__file__).parents[2] / "runs" / "screenshots"


@dataclass
class Watched:
    """A page, and what it did."""

    page: Any
    console: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def look(self, name: str, *, full: bool = False) -> bytes:
        """A screenshot, kept in runs/screenshots for people."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        return self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full)

    def text(self, selector: str) -> str:
        return " ".join(self.page.locator(selector).inner_text().split())

    def texts(self, selector: str) -> list[str]:
        return [" ".join(one.split()) for one in self.page.locator(selector).all_inner_texts()]


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser that `make install-browser` installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("there is no chromium on this machine: make install-browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Any, *, width: int = 1360, height: int = 900, scheme: str = "light") -> Iterator[Watched]:
    """Open a new page with its own storage."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(10_000)
    watched = Watched(context.new_page())
    watched.page.on("console", lambda message: watched.console.append(f"{message.type}: {message.text}"))
    watched.page.on("pageerror", lambda error: watched.console.append(f"uncaught: {error}"))
    watched.page.on("request", lambda request: watched.requests.append(request.url))

    def refuse(dialog: Any) -> None:
        watched.dialogs.append(dialog.message)
        dialog.dismiss()

    watched.page.on("dialog", refuse)
    yield watched
    context.close()


def foreign_elements(page: Any) -> list[str]:
    """Elements that the report's own code never makes, and attributes that run code or ask for something."""
    return page.evaluate(_FOREIGN)


_FOREIGN = """() => {
  const own = 'head > style, head > link[rel=icon], #filters, #filters input, #metrics label input, .cell > b';
  const tags = 'b, img, iframe, object, embed, base, style, link, form, input, audio, video';
  const code = (name) => /^on|^srcdoc$|^action$|^src$/.test(name);
  const address = /^(#(overview|rollouts|metrics)[0-9/]*|data:,)$/;
  return [...document.querySelectorAll('*')].filter((one) =>
    (one.matches(tags) && !one.matches(own))
    || [...one.attributes].some((attribute) => code(attribute.name))
    || (one.hasAttribute('href') && !address.test(one.getAttribute('href')))
    || (one.matches('script') && one.parentElement !== document.body)
  ).map((one) => one.outerHTML.slice(0, 100));
}"""


def mean_colour(png: bytes) -> tuple[float, float, float]:
    """Red, green and blue of a screenshot, from 0 to 255."""
    red, green, blue = _image(png).resize((1, 1), resample=4).getpixel((0, 0))
    return red, green, blue


def pixels_of(png: bytes, colour: tuple[int, int, int]) -> int:
    """Return how many pixels have nearly this colour."""
    found = _image(png).getcolors(1 << 24) or []
    return sum(n for n, pixel in found if all(abs(a - b) < 12 for a, b in zip(pixel, colour, strict=True)))


def _image(png: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")
