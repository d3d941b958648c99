"""From a page as it came to text that an agent reads."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from html import unescape

from envs.named import extra

EXTRACTORS = ("html", "resiliparse", "trafilatura")
TEXTS = ("application/json", "application/xml", "application/xhtml+xml", "application/javascript", "")
_NO_CHARSETS = ("punycode", "idna", "undefined", "unicode_escape", "raw_unicode_escape")  # punycode is quadratic
_HIDDEN = ("title", "script", "style", "noscript", "template", "svg", "head", "iframe", "object", "select")
_DEEPEST, _LONGEST = 64, 2 << 20  # hidden parts within each other; characters of a page
_RAW = ("script", "style", "iframe", "noscript")
_TAG = re.compile(r"<(/?[a-zA-Z][\w:-]{0,40})")
_STARTS = frozenset("/!?abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_BLOCKS = ("p", "div", "section", "article", "ul", "ol", "table", "tr", "blockquote", "pre", "dl", "dt", "dd", "figure")
_BLOCKS += ("header", "footer", "main", "nav", "aside", "form", "h1", "h2", "h3", "h4", "h5", "h6", "li", "br", "hr")


def decoded(data: bytes, charset: str) -> str:
    """Text of ``data``: by the header's ``charset``, else by what the page says of itself, else UTF-8."""
    said = re.search(rb"<meta[^>]{0,200}charset=[\"']?\s*([\w-]{1,40})", data[:4096], re.IGNORECASE)
    for name in (charset, said[1].decode("ascii") if said else "", "utf-8"):
        try:
            if name and codecs.lookup(name).name.replace("-", "_") in _NO_CHARSETS:
                continue
            return data.decode(name, "replace") if name else data.decode("utf-8")
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return data.decode("utf-8", "replace")


def extracted(html: str, how: str) -> tuple[str, str]:
    """Title and text of a page, by this module (``html``) or by a package (extra ``pages``)."""
    title, text = visible(html)
    if how == "resiliparse":
        found = extra("resiliparse.extract.html2text", "resiliparse", "envs.config.fetch.extract")
        return title, found.extract_plain_text(html, main_content=True, links=False)
    if how == "trafilatura":
        found = extra("trafilatura", "trafilatura", "envs.config.fetch.extract")
        return title, found.extract(html, include_tables=True) or ""
    return title, text


def visible(html: str) -> tuple[str, str]:
    """Title and visible text: a line for each block, ``#`` before headings, ``-`` before items, ``|`` between cells.

    Linear in the length of ``html``, whatever is in it; the standard library's parser is not.
    """
    title, parts, hidden = list[str](), list[str](), list[str]()
    for tag, text in _tokens(html[:_LONGEST]):
        name = tag.removeprefix("/")
        if not tag:
            (title if hidden[-1:] == ["title"] else [] if hidden else parts).append(unescape(re.sub(r"\s+", " ", text)))
        elif name in _HIDDEN:
            if tag == name and len(hidden) < _DEEPEST:
                hidden.append(name)
            elif name in hidden:
                del hidden[hidden.index(name) :]
        elif name == "body":  # a head that was never closed
            hidden = [one for one in hidden if one not in ("head", "title")]
        elif name in _BLOCKS:
            heading = "#" * int(name[1]) + " " if re.fullmatch("h[1-6]", name) else "- " if name == "li" else ""
            parts.append("\n" + (heading if tag == name else ""))
        elif tag in ("td", "th"):
            parts.append(" | ")
    lines = (re.sub(r" +", " ", line).strip().removeprefix("| ") for line in "".join(parts).split("\n"))
    return " ".join("".join(title).split()), "\n".join(line for line in lines if line.strip("-#| "))


def _tokens(html: str) -> Iterator[tuple[str, str]]:
    """Pairs of tag and text: a text has no tag, a tag (``p``, ``/p``) no text. Each character is looked at once."""
    at = 0
    while at < len(html):
        start = html.find("<", at)
        if start < 0 or start == len(html) - 1:
            yield "", html[at:]
            return
        if html[start + 1] not in _STARTS:  # a plain <
            yield "", html[at : start + 1]
            at = start + 1
            continue
        yield "", html[at:start]
        comment = html.startswith("<!--", start)
        end = html.find("-->", start) if comment else _end_of_tag(html, start)
        if end < 0:
            return
        found = _TAG.match(html, start)
        at = end + (3 if comment else 1)
        if found and not comment:
            tag = found[1].lower()
            yield tag, ""
            if tag in _RAW:  # its text is none, up to its end
                close = re.compile(f"</{tag}", re.IGNORECASE).search(html, at)
                if close is None:
                    return
                at = close.start()


def _end_of_tag(html: str, start: int) -> int:
    """Where the tag's ``>`` is, outside quotes; -1 if there is none."""
    at = start
    while True:
        end = html.find(">", at)
        if end < 0 or not html.count('"', at, end) % 2:
            return end
        closed = html.find('"', end)
        if closed < 0:  # a quote that is never closed is none
            return end
        at = closed + 1
