"""A user's folder as a corpus: what is read, what is left out and why, questions, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from envs.data.problems import DataError
from envs.research.corpus import Corpus
from envs.research.folder.build import build_folder, divided
from envs.research.folder.formats import documents
from parl.cli.main import app

ASKED = {"prompt": "How tall is Huascarán?", "gold": {"kind": "exact", "answers": ["6,768 m"]}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "guide.md").write_text("# The *Guide*\n\nHuascarán is 6,768 m tall.\n")
    (folder / "deep" / "plain.txt").write_text("Alpamayo\n========\n\nIt is 5,947 m tall.\n")
    (folder / "front.md").write_text("---\nweight: 3\ntitle: 'Front matter'\n---\nBody.\n")
    (folder / "towns.csv").write_text("town,height\nCusco,3399 m\nPuno,3827 m\n")
    (folder / "style.css").write_text("a {}")
    (folder / ".hidden.md").write_text("secret")
    (folder / "LICENSE").write_text("Free.")
    return folder


def built(source: Path, tmp_path: Path, questions: Path | None = None, name: str = "corpus"):
    target = tmp_path / name
    target.mkdir()
    return build_folder(source, target, questions), Corpus(target)


def test_titles_and_rows(source: Path, tmp_path: Path):
    made, corpus = built(source, tmp_path)
    titles = {hit.title for hit in corpus.search("the guide alpamayo front matter cusco puno", 10)}
    assert titles == {"The Guide", "Alpamayo", "Front matter", "Cusco", "Puno"}
    assert (made.files, made.pages) == (4, 5)
    page = corpus.titled("Cusco")
    assert page is not None and page.text == "town: Cusco\nheight: 3399 m"
    assert made.others == {".css": 1, "without a suffix": 1} and not made.left_out
    assert (tmp_path / "corpus" / "LICENSES" / "LICENSE").read_text() == "Free."


def test_the_same_folder_gives_the_same_corpus(source: Path, tmp_path: Path):
    first, second = (built(source, tmp_path, name=name)[1] for name in ("a", "b"))
    assert first.digest == second.digest
    (source / "guide.md").write_text("Changed.")
    assert built(source, tmp_path, name="c")[1].digest != first.digest


@pytest.mark.parametrize(
    ("text", "title", "kept"),
    [
        ("---\nweight: 3\n---\n# Flags\n\nBody.\n\n---\ntitle: Example\n---\nEnd.\n", "Flags", "Body."),
        ("---\nweight: 3\n---\nBody.\n", "page", "Body."),
        ("---\ntitle: Flags\n---\nBody.\n\n---\n\nEnd.\n", "Flags", "Body."),
        ("---\ntitle: Flags\nno end\n", "page", "title: Flags"),
    ],
)
def test_front_matter_ends_at_its_closing_line(tmp_path: Path, text: str, title: str, kept: str):
    (tmp_path / "page.md").write_text(text)
    ((found, body),) = documents(tmp_path / "page.md")
    assert found == title and kept in body and ("End." in text) == ("End." in body)


def test_a_pdf_that_fails_in_any_way_is_left_out_with_the_reason(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class DependencyError(Exception):  # as pypdf's, which is no PyPdfError
        pass

    def reader(path: Path) -> None:
        raise DependencyError("cryptography>=3.1 is required for AES algorithm")

    errors = SimpleNamespace(PyPdfError=ValueError)
    monkeypatch.setitem(sys.modules, "pypdf", SimpleNamespace(PdfReader=reader, errors=errors))
    monkeypatch.setitem(sys.modules, "pypdf.errors", errors)
    (source / "aes.pdf").write_bytes(b"%PDF-1.7")
    made, corpus = built(source, tmp_path)
    assert len(corpus) == 5 and made.left_out[0][0] == "aes.pdf" and "cryptography" in made.left_out[0][1]


def test_questions_may_hold_every_line_end_of_unicode(source: Path, tmp_path: Path):
    asked = ASKED | {"prompt": "How tall\u2028is\x85it\u2029?"}
    (source / "questions.jsonl").write_text(json.dumps(asked, ensure_ascii=False) + "\n", encoding="utf-8")
    assert built(source, tmp_path)[1].tasks("val")[0].prompt == asked["prompt"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("empty.md", b" \n", "holds no text"),
        ("ragged.csv", b"a,b\n1\n", "1 cells where the header has 2"),
        ("word.docx", b"PK", "save it as PDF or text"),
        ("sheet.xlsx", b"PK", "save the sheet as CSV"),
        ("zip.txt", b"PK\x03\x04", "zip archive"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_the_reason(
    source: Path, tmp_path: Path, name: str, content: bytes, reason: str
):
    (source / name).write_bytes(content)
    made, corpus = built(source, tmp_path)
    assert len(made.left_out) == 1 and made.left_out[0][0] == name
    assert reason in made.left_out[0][1]
    assert len(corpus) == 5


def test_links_to_outside_are_not_followed(source: Path, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("hunter2")
    (source / "link.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.md").write_text("hunter2")
    (source / "folder").symlink_to(tmp_path / "more")
    assert not built(source, tmp_path)[1].search("hunter2", 3)


def test_long_documents_are_divided_at_headings_and_lose_nothing():
    text = "\n".join(f"## Part {n}\n" + "word " * 900 for n in range(8))
    parts = divided("Long", text)
    assert [title for title, _ in parts] == [f"Long ({n} of {len(parts)})" for n in range(1, len(parts) + 1)]
    assert all(part.startswith("## Part") and len(part) <= 12_000 for _, part in parts)
    assert " ".join(part for _, part in parts).split() == text.split()
    assert [len(part) for _, part in divided("x", "y" * 30_000)] == [12_000, 12_000, 6_000]


def test_two_documents_of_one_title_are_told_apart(source: Path, tmp_path: Path):
    (source / "deep" / "other.md").write_text("# The Guide\nAnother.")
    corpus = built(source, tmp_path)[1]
    assert corpus.titled("The Guide") and corpus.titled("The Guide (deep/other.md, 2)")


def test_html_without_its_frame(tmp_path: Path):
    pytest.importorskip("resiliparse", reason="the extra documents is not installed")
    path = tmp_path / "page.html"
    body = "<main><h1>Peaks</h1><p>" + "Huascarán &amp; co. are tall. " * 20 + "</p><p>Yerupajá: 6,634 m</p></main>"
    head = "<html><head><title>Peaks of  Peru</title><script>let x = 'tracking'</script></head><body><nav>Home</nav>"
    path.write_text(head + body + "<footer>Imprint</footer></body></html>", encoding="utf-8")
    ((title, text),) = documents(path)
    assert title == "Peaks of Peru" and "Huascarán & co." in text and "Yerupajá: 6,634 m" in text
    assert not any(word in text for word in ("tracking", "Imprint", "Home"))


def test_pdf_text_by_page_and_what_is_no_pdf(tmp_path: Path):
    pypdf = pytest.importorskip("pypdf", reason="the extra documents is not installed")
    from envs.research.folder.formats import Unreadable

    blank = pypdf.PdfWriter()
    blank.add_blank_page(100, 100)
    blank.write(tmp_path / "scan.pdf")
    with pytest.raises(Unreadable, match="text recognition"):
        list(documents(tmp_path / "scan.pdf"))
    blank.encrypt("secret")
    blank.write(tmp_path / "locked.pdf")
    with pytest.raises(Unreadable, match="password"):
        list(documents(tmp_path / "locked.pdf"))
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(Unreadable, match="damaged"):
        list(documents(tmp_path / "bad.pdf"))
    (tmp_path / "good.pdf").write_bytes(_pdf("Huascaran is 6768 m tall"))
    ((title, text),) = documents(tmp_path / "good.pdf")
    assert title == "good" and text == "[page 1]\nHuascaran is 6768 m tall"


def _pdf(text: str) -> bytes:
    """A PDF of one page, written by hand."""
    stream = f"BT /F1 12 Tf 20 50 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 100] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)
    return out + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


def test_questions_by_split_and_those_without_one_in_all(source: Path, tmp_path: Path):
    rows = [ASKED | {"split": "train"}, ASKED | {"split": "val", "prompt": "How tall is Alpamayo?"}]
    (source / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, corpus = built(source, tmp_path)
    assert made.tasks == {"train": 1, "val": 1, "test": 0}
    assert corpus.tasks("val")[0].prompt == "How tall is Alpamayo?"
    assert not corpus.search("gold kind exact", 5), "the questions are no page"
    single = tmp_path / "asked.jsonl"
    single.write_text(json.dumps(ASKED) + "\n")
    made, corpus = built(source, tmp_path, single, "other")
    assert made.tasks == {"train": 1, "val": 1, "test": 1} and "no row has a split" in made.notes[0]
    assert corpus.tasks("test")[0].split == "test"


def test_mistakes_in_questions_are_named_by_line(source: Path, tmp_path: Path):
    (source / "questions.jsonl").write_text('{"prompt": "x"}\n{"gold": 3}\n')
    with pytest.raises(DataError, match=r"(?s)questions\.jsonl.*line 1.*line 2"):
        built(source, tmp_path)
    (source / "questions.jsonl").write_text(json.dumps(ASKED | {"split": "dev"}) + "\n")
    with pytest.raises(DataError, match="dev"):
        built(source, tmp_path, name="again")


def test_the_command(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (source / "word.docx").write_bytes(b"x")
    done = CliRunner().invoke(app, ["env", "build", "folder", str(source)])
    assert done.exit_code == 0, done.output
    assert "4 files, 5 pages" in done.output and "corpus: corpora/notes" in done.output
    assert "left out: word.docx: .docx files are not read" in done.output
    (source / "new.md").write_text("# Yerupajá\n6,634 m")
    assert CliRunner().invoke(app, ["env", "build", "folder", str(source)]).exit_code == 0
    assert Corpus(tmp_path / "corpora" / "notes").titled("Yerupajá"), "made again"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nowhere"], "not there"), (["notes/guide.md"], "is a file"), (["notes", "--to", "notes"], "is no corpus")],
)
def test_wrong_places(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["env", "build", "folder", *arguments])
    assert done.exit_code == 2 and said in done.output
    assert (source / "guide.md").exists()


def test_a_folder_without_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.docx").write_bytes(b"x")
    done = CliRunner().invoke(app, ["env", "build", "folder", "bare"])
    assert done.exit_code == 2 and "can be read" in done.output and "a.docx" in done.output
    assert not (tmp_path / "corpora" / "bare").exists()
