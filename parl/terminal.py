"""What a terminal shows: text of strangers (tasks, answers, tools, names, servers' errors) that cannot steer it.

Control characters, terminal sequences, marks that turn the reading direction, invisible characters and lone surrogates
are shown by their escapes (``\\x1b``, ``\\u202e``), so they are seen and do nothing. No text is read as rich's markup
unless it is a template of ours (:func:`styled`). All of ``parl`` prints with :func:`echo` and :func:`console`.
"""

from __future__ import annotations

import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

# Cc but newline and tab, Cf, Cs, Zl and Zp; joiners are judged by what stands before them
_RANGES = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_UNSAFE = re.compile(f"[{_RANGES}]")
_JOINERS = "\u200c\u200d"  # emoji and several scripts need them


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
    typer.echo(plain(text), err=err, nl=nl)


def echo_traceback() -> None:
    """The exception that is being handled, on standard error."""
    echo(traceback.format_exc(), err=True, nl=False)


def console(*, least: int = 0, stderr: bool = False, highlight: bool = True) -> Console:
    """Where tables go; ``least``: columns that they need at least."""
    made = _Console(file=sys.stderr if stderr else sys.stdout, markup=False, emoji=False, highlight=highlight)
    if made.width < least:
        made.width = least
    return made


class _Console(Console):
    """A console through which no control character passes, wherever it was hidden in what is printed."""

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


def catch_warnings() -> None:
    """Warnings, which may quote a server or a file, are made :func:`plain` as well."""
    usual = warnings.formatwarning

    def shown(*args: Any, **named: Any) -> str:
        return plain(usual(*args, **named))

    warnings.formatwarning = shown
