"""Keeps outside text apart from a template's own while it is rendered.

Texts go into the template as masks: words that no text has, which come out again where the text belongs. So what the
template writes is known from what it was given, whatever that spells. A mask also shows what the template does to a
text: whether it strips it, and how often it stands inside JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WORD = "zqparlqz"
_LINES = 7  # more newlines than a template writes in a row
_NEWLINE = r"(?:\n|\\+n)"
_MASK = re.compile(
    rf"((?:{_NEWLINE}){{{_LINES}}})?(\t|\\+t)?{_WORD}(\d+)(\\*)\"({_NEWLINE})(é|\\+u00e9){_WORD}(\t|\\+t)?"
    rf"((?:{_NEWLINE}){{{_LINES}}})?"
)
_SUSPECT = set("<>[]|｜＜＞")  # letters of control tokens' names that are no letters


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a rendered text: the template's own, or the outside text number ``mask``, as the template wrote it."""

    text: str
    mask: int | None = None


class Masks:
    """The outside texts of one rendering."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def put(self, text: str) -> str:
        """The mask that stands for ``text``."""
        self._texts.append(text)
        pad = "\n" * _LINES
        return f'{pad}\t{_WORD}{len(self._texts) - 1}"\né{_WORD}\t{pad}'

    @property
    def last(self) -> int:
        """Number of the text that was put last."""
        return len(self._texts) - 1

    def guard(self, value: Any) -> Any:
        """``value`` with masks for all texts in it, keys included, that could spell a control token."""
        if isinstance(value, str):
            return self.put(value) if not _SUSPECT.isdisjoint(value) else value
        if isinstance(value, dict):
            return {self.guard(key): self.guard(item) for key, item in value.items()}
        return [self.guard(item) for item in value] if isinstance(value, list | tuple) else value

    def hide(self, value: Any) -> Any:
        """``value`` with masks for all texts in it; keys as in :meth:`guard`."""
        if isinstance(value, str):
            return self.put(value) if value else value
        if isinstance(value, dict):
            return {self.guard(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list | tuple) else value

    def parts(self, rendered: str) -> list[Part]:
        """``rendered`` in runs. ValueError where the template changes a text in another way than strip and JSON."""
        found: list[Part] = []
        at = 0
        for match in _MASK.finditer(rendered):
            found += [Part(rendered[at : match.start()]), Part(self._written(match), int(match[3]))]
            at = match.end()
        found.append(Part(rendered[at:]))
        own = [part for part in found if part.mask is None]
        if any(_WORD in part.text for part in own):
            raise ValueError("the chat template cuts or changes the texts that it is given")
        return [part for part in found if part.text or part.mask is not None]

    def _written(self, match: re.Match[str]) -> str:
        text = self._texts[int(match[3])]
        if match[2] is None:
            text = text.lstrip()
        elif match[1] is None:
            text = text.lstrip("\n")
        if match[7] is None:
            text = text.rstrip()
        elif match[8] is None:
            text = text.rstrip("\n")
        depth = {"": 0, "\\": 1, "\\\\\\": 2}.get(match[4])
        if depth is None or match[5] != ("\n", "\\n", "\\\\n")[depth]:
            raise ValueError("the chat template writes values as Python does, not as JSON")
        for _ in range(depth):
            text = json.dumps(text, ensure_ascii=match[6] != "é")[1:-1]
        return text


def after(parts: Sequence[Part], mask: int) -> list[Part]:
    """The parts after the last one of the text ``mask``. ValueError where the template left it out."""
    for place in range(len(parts) - 1, -1, -1):
        if parts[place].mask == mask:
            return list(parts[place + 1 :])
    raise ValueError("the chat template leaves out a text that it is given")
