"""What a terminal shows: text of strangers (tasks, answers, tools, names, servers' errors) that cannot steer it.

Control characters, terminal sequences, marks that turn the reading direction, invisible characters and lone surrogates
are shown by their escapes (``\\x1b``, ``\\u202e``), so they are seen and do nothing. No text is read as rich's markup
unless it is a template of ours (:func:`styled`). All of ``parl`` prints with :func:`echo` and :func:`console`.
"""

from __future__ import annotations

import atexit
import codecs
import io
import os
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from parl.shown.redaction import without_credentials

# Cc but newline and tab, Cf, Cs, Zl and Zp; joiners are judged by what stands before them
_RANGES = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSAFE = re.compile(f"[{_RANGES}]")
_ALIKE = "parl.alike"
_PAIRS = "▁_ ▂_ ▃. ▄. ▅- ▆- ▇= █# ·- •* →> ←< …. –- —- ×x ±~ ≤< ≥> λl μu τt ‘' ’' “\" ”\" │| ─- ━= ╭+ ╮+ ╰+ ╯+ ├+ └+ ⏎/"
_LOOKS = {pair[0]: pair[1] for pair in _PAIRS.split()}
_UNCUT = 10_000  # columns: more than any table needs
_JOINERS = "\u200c\u200d"  # emoji and several scripts need them


class Unread(BrokenPipeError):
    """Nobody reads what we print any more."""


def plain(text: object) -> str:
    """``text`` without anything that a terminal obeys or hides; newlines and tabs stay."""
    given = str(text)
    return _UNSAFE.sub(_shown, given) if _UNSAFE.search(given) else given


def line(text: object) -> str:
    """:func:`plain` on one line: a name that holds a newline cannot begin a line of its own."""
    return plain(text).replace("\n", "\\n").replace("\t", " ")


def cell(text: object, style: str = "") -> Text:
    """``text`` for a table or a tree: never markup, never a link."""
    return Text(plain(text), style)


def styled(template: str, *parts: object) -> Text:
    """Markup of ours with strangers' ``parts`` in its ``{}``: ``styled("[red]{}[/]", error)``."""
    return Text.from_markup(template.format(*(escape(plain(part)) for part in parts)), emoji=False)


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print ``text`` as it is, made :func:`plain`."""
    try:
        print(plain(text), end="\n" if nl else "", file=sys.stderr if err else sys.stdout, flush=True)
    except BrokenPipeError:
        unread()
        raise Unread from None


def echo_traceback() -> None:
    """The current exception, on standard error."""
    echo(without_credentials(traceback.format_exc()), err=True, nl=False)


def console(*, stderr: bool = False, highlight: bool = True) -> Console:
    """A console for tables, as wide as the terminal, or unlimited for a file or a program."""
    made = _Console(file=sys.stderr if stderr else sys.stdout, markup=False, emoji=False, highlight=highlight)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _UNCUT
    return made


class _Console(Console):
    """A console that lets no control character through."""

    def on_broken_pipe(self) -> None:
        """Nobody reads the output: end the command (``parl.cli.errors``)."""
        unread()
        raise Unread

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and _UNSAFE.search(segment.text):
                yield Segment(_UNSAFE.sub("\N{REPLACEMENT CHARACTER}", segment.text), segment.style)
            else:
                yield segment


def _shown(found: re.Match[str]) -> str:
    character, at = found[0], found.start()
    before = found.string[at - 1] if at else "a"
    if character in _JOINERS and not before.isascii() and unicodedata.category(before)[0] in "LMS":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def open_output() -> None:
    """Replace characters that the output's encoding lacks by similar ones. Call once, before any output.

    A closed or unread output is no error.
    """
    codecs.register_error(_ALIKE, _replaced)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ALIKE)
    atexit.register(unread)


def unread() -> bool:
    """Whether nobody reads the output any more, as behind ``| head``; further output is discarded."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            gone = True
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    return gone


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """A codec error handler: replaces each character that cannot be encoded."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_LOOKS.get(one) or _bare(one) for one in text), error.end


def _bare(character: str) -> str:
    """A letter without accents; ``?`` for all else."""
    letter = unicodedata.normalize("NFKD", character)[0]
    return letter if letter.isascii() and letter.isprintable() else "?"


def catch_warnings() -> None:
    """Make warnings :func:`plain` too, since they may quote a server or a file, and remove credentials."""
    usual = warnings.formatwarning

    def shown(*args: Any, **named: Any) -> str:
        return plain(without_credentials(usual(*args, **named)))

    warnings.formatwarning = shown
