"""Real documents of every kind, good and broken, as passages."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.pdf import pdf_of
from verl_mtgrpo.data.chunks import chunk
from verl_mtgrpo.data.corpus import read_corpora
from verl_mtgrpo.data.documents import is_documents, read_documents
from verl_mtgrpo.data.notes import LONG_CHARS, Notes
from verl_mtgrpo.errors import ConfigError, DataError
from verl_mtgrpo.passages import Passage

for package in ("pypdf", "semantic_text_splitter", "bs4", "markdownify"):
    pytest.importorskip(package, reason="needs the extra documents")

MARKDOWN = """\
# The harbour

Velm has a harbour.

## Opening hours

It opens at nine.

```bash
# this is no heading
open the gate
```
"""
HTML = """\
<!doctype html><html><head><title>The
  market</title><style>p { color: red }</style><script>var nothing = "script";</script></head>
<body><nav><a href="/">Home</a></nav><main><h1>The market</h1>
<p>Fish is sold in <a href="https://example.org">the hall</a>, snake_case and 2 * 3.</p>
<h2>Prices</h2><table><tr><th>fish</th><th>price</th></tr><tr><td>cod</td><td>7</td></tr></table>
</main><footer>Imprint</footer></body></html>
"""


def folder_of_all_kinds(root: Path) -> Path:
    (root / "docs" / "deep").mkdir(parents=True)
    (root / "docs" / ".git").mkdir()
    (root / "docs" / "a.txt").write_bytes("\ufeffThe mill stands\r\non a hill.".encode())
    (root / "docs" / "b.md").write_text(MARKDOWN)
    (root / "docs" / "deep" / "c.HTML").write_text(HTML)
    (root / "docs" / "d.pdf").write_bytes(pdf_of(["The first page.", "", "The third page."], title="A manual"))
    (root / "docs" / ".git" / "HEAD.txt").write_text("hidden")
    (root / "docs" / "picture.png").write_bytes(b"\x89PNG")
    (root / "docs" / "rows.jsonl").write_text("{}")
    return root / "docs"


def test_a_folder_of_all_kinds(tmp_path: Path):
    notes = Notes()
    found = {p.id: p for p in read_documents(folder_of_all_kinds(tmp_path), notes, chunk_chars=60)}
    assert found["docs/a.txt#1"] == Passage("docs/a.txt#1", "a", "The mill stands\non a hill.")
    markdown = [p for id, p in found.items() if id.startswith("docs/b.md")]
    assert markdown[0].title == "The harbour" and "Velm has a harbour." in markdown[0].text
    assert {p.title for p in markdown[1:]} == {"The harbour: Opening hours"}, "a comment in code is no heading"
    assert any("open the gate" in p.text for p in markdown)
    html = [p for id, p in found.items() if id.startswith("docs/deep/c.HTML")]
    text = "\n".join(p.text for p in html)
    assert "Fish is sold in the hall, snake_case and 2 * 3." in " ".join(text.split())
    assert "| cod | 7 |" in text and html[-1].title == "The market: Prices"
    assert not [word for word in ("script", "color", "Home", "Imprint", "example.org") if word in text]
    assert [(p.id, p.title, p.text) for id, p in found.items() if ".pdf" in id] == [
        ("docs/d.pdf#1", "A manual: page 1", "The first page."),
        ("docs/d.pdf#2", "A manual: page 3", "The third page."),
    ]
    assert not [id for id in found if "hidden" in found[id].text]
    assert list(notes.lines()) == ["2 files of other kinds were skipped: 1 .jsonl, 1 .png"]


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path):
    from pypdf import PdfReader, PdfWriter

    (tmp_path / "good.txt").write_text("A good text.")
    (tmp_path / "latin.txt").write_bytes("Straße".encode("latin-1"))
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing follows")
    (tmp_path / "scan.pdf").write_bytes(pdf_of(["", ""]))
    (tmp_path / "deep.html").write_text("<div>" * 3_000 + "x")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    locked = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of(["secret"]))))
    locked.encrypt("password", algorithm="RC4-128")
    locked.write(tmp_path / "locked.pdf")

    notes = Notes()
    assert [p.text for p in read_documents(tmp_path, notes)] == ["A good text."]
    reasons = {path.name: reason for path, reason in notes.files.items()}
    assert reasons.pop("broken.pdf").startswith("is damaged or no PDF (")
    assert reasons == {
        "latin.txt": "is not UTF-8 text (invalid continuation byte at byte 5)",
        "empty.md": "has no text",
        "scan.pdf": "has 2 pages without text: it may be a scan, which needs OCR first",
        "deep.html": "is nested too deeply",
        "gone.txt": "cannot be opened (No such file or directory)",
        "locked.pdf": "is encrypted: it asks for a password",
    }
    first, *others = notes.lines()
    assert first == "7 documents could not be read and are not in the index:" and len(others) == 7


def test_nothing_can_be_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"the only document, .*a\.txt, cannot be read: .*a\.txt has no text"):
        list(read_documents(tmp_path / "a.txt", Notes()))
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(DataError, match=r"none of the 2 documents in .* can be read: .*a\.txt has no text; .*b\.txt"):
        list(read_documents(tmp_path, Notes()))
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        list(read_documents(tmp_path / "gone.txt", Notes()))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    (tmp_path / "a.pdf").write_bytes(pdf_of(["x"]))
    (tmp_path / "a.txt").write_text("x")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pypdf" else there(name))
    with pytest.raises(ConfigError, match=r"reading \.pdf needs the package pypdf, .*verl-mtgrpo\[documents\]"):
        list(read_documents(tmp_path, Notes()))
    assert [p.text for p in read_documents(tmp_path / "a.txt", Notes())] == ["x"], "text needs no pypdf"


def test_documents_beside_other_corpora(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "a record"}\n')
    (tmp_path / "b.md").write_text("---\ntitle: 'A title'\ntags: [x]\n---\nA document.\n")
    found = list(read_corpora([tmp_path / "a.jsonl", tmp_path / "b.md"]))
    assert found == [Passage("1", "", "a record"), Passage("b.md#1", "A title", "A document.")]


def test_what_is_a_folder_of_documents(tmp_path: Path):
    for name, files in {"docs": ["a.md"], "data": ["a.jsonl"], "saved": ["state.json", "README.md"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("x")
    assert [is_documents(tmp_path / name) for name in ("docs", "data", "saved")] == [True, False, False]


@settings(max_examples=60)
@given(
    words=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=40)),
    gaps=st.lists(st.sampled_from([" ", " ", "\n", "\n\n", "\n# Head\n"]), min_size=1, max_size=7),
    markdown=st.booleans(),
)
def test_passages_fit_and_no_text_is_lost(words: list[str], gaps: list[str], markdown: bool):
    """Every character that is not white space is in exactly one passage, in order, except in bare headings."""
    text = "".join(word + gaps[n % len(gaps)] for n, word in enumerate(words))
    passages = [passage for _, passage in chunk(text, 50, markdown=markdown)]
    assert all(0 < len(one) <= 50 for one in passages)
    kept, whole = "".join("".join(passages).split()), "".join(text.split())
    if markdown:
        assert kept.replace("#Head", "") == whole.replace("#Head", "") or "#" in "".join(words)
    else:
        assert kept == whole


@pytest.mark.parametrize("gap", [" ", "\n", "\n\n", ""])
def test_a_long_text_is_split_in_seconds_and_whole(gap: str):
    """A splitter whose time grows with the square of the text would need minutes for these 300,000 characters."""
    text = gap.join(f"word{number}" for number in range(30_000))
    passages = [passage for _, passage in chunk(text, 1000)]
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert max(map(len, passages)) <= 1000 and len(passages) < 2 * len(text) / 1000 + 2


def test_long_and_empty_passages_are_noted():
    notes = Notes()
    given = [Passage("a", "", "x" * (LONG_CHARS + 1)), Passage("b", "", " "), Passage("c", "", "x" * LONG_CHARS)]
    assert list(notes.watching(given)) == given
    long, empty = notes.lines()
    assert long.startswith("1 passages have more than 100,000 characters, the longest 100,001 (id 'a')")
    assert empty == "1 passages have no text"
