"""Files as text: every self-declared encoding is read, others are reported with the fix."""

from __future__ import annotations

import codecs
from pathlib import Path

from envs.data.problems import Problems

_BOMS = (  # longer ones first: UTF-32's begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = (  # first bytes of a file, its kind, and the fix
    (b"\x1f\x8b", "gzip", "unpack it (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unpack it (zstd -d)"),
    (b"BZh", "bzip2", "unpack it (bunzip2)"),
    (b"\xfd7zXZ", "xz", "unpack it (unxz)"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet", "unpack it, or save the sheet as CSV, UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Office file", "save the sheet as CSV, UTF-8"),
    (b"PAR1", "Parquet", "give it the suffix .parquet"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF", "a PDF", "save the table as CSV"),
    (b"\x89PNG", "a picture", "name a file of tasks or a table"),
)
_LISTED = 5


def read_bytes(path: Path, problems: Problems) -> bytes | None:
    """The file's content; None, and a problem, if it cannot be read."""
    if path.is_dir():
        problems.add("", "is a folder; name one file in it")
    elif not path.exists():
        problems.add("", "no such file")
    elif not path.is_file():
        problems.add("", "is no regular file; save the data to one")
    else:
        try:
            return path.read_bytes()
        except OSError as fault:
            problems.add("", f"cannot be read ({fault.strerror or fault})")
    return None


def read_text(path: Path, problems: Problems) -> str | None:
    """The file's text with ``\\n`` as its only line end; None, and a problem, if it is not text.

    UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one.
    """
    data = read_bytes(path, problems)
    if data is None:
        return None
    for start, kind, cure in _KINDS:
        if data.startswith(start):
            problems.add("", f"is {kind}, no text: {cure}")
            return None
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as fault:
        if encoding.startswith("utf-8"):
            _name_lines(data, problems)
        else:
            problems.add(
                "", f"begins as {encoding.upper()} and is cut off or broken at byte {fault.start}; save it as UTF-8"
            )
        return None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        cause = "NUL characters (binary, a crashed copy, or UTF-16 without its byte-order mark)"
        problems.add(f"line {line}", f"{cause}; save the file again as UTF-8")
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _name_lines(data: bytes, problems: Problems) -> None:
    """Report which lines are not UTF-8, and how the first would read in Windows' encoding."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    bad = [number for number, line in enumerate(lines, 1) if not _is_utf8(line)]
    if not bad:
        problems.add("", "is not UTF-8; save it as UTF-8")
        return
    shown = lines[bad[0] - 1].decode("cp1252", "replace").strip()[:60]
    listed = ", ".join(map(str, bad[:_LISTED])) + (f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else "")
    where = f"line{'s' if len(bad) > 1 else ''} {listed}"
    problems.add(
        where,
        f"not UTF-8 (as Latin-1 or Windows-1252: {shown!r}); save the file as UTF-8,"
        " e.g. iconv -f cp1252 -t utf-8 OLD > NEW",
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
