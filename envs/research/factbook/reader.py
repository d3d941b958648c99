"""Reads values out of a page's text, without patterns: an independent check of gold, and the eyes of scripts.

A line is ``label: value``; a value ends where a bracket or a note begins. :func:`same` compares what was read with a
gold as amounts (``1.284 million`` is 1,284,000) with units, dates, or words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from envs.research.corpus import folded, plain_words

_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A number in full, ``unit`` in lower case (``%``, ``$``, ``sq km``)."""

    number: Decimal
    unit: str


def line_of(text: str, label: str) -> str | None:
    """The value of the first line whose label has exactly the words of ``label`` at its end or start."""
    wanted = plain_words(label)
    for line in text.splitlines():
        name, value = _split(line, wanted)
        if name:
            return value
    return None


def _split(line: str, wanted: str) -> tuple[str, str]:
    """(label, value) where the label, up to some colon, ends with the words ``wanted``; else two empty texts."""
    at = line.find(": ")
    while at >= 0:
        if plain_words(line[:at]).endswith(wanted):
            return line[:at], line[at + 2 :]
        at = line.find(": ", at + 2)
    return "", ""


def first_value(value: str) -> str:
    """``value`` up to the first bracket, semicolon or note, brackets within a name left out."""
    shown, depth = [], 0
    for place, char in enumerate(value):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth = max(depth - 1, 0)
        elif not depth and (char == ";" or value[place:].startswith(("note:", "- note"))):
            break
        elif not depth:
            shown.append(char)
    return " ".join("".join(shown).split())


def amount_of(text: str) -> Amount | None:
    """The number at the beginning of ``text``, its scale multiplied in, and the words behind it; None if none."""
    words = text.replace("\u2212", "-").split()
    if not words:
        return None
    first, unit = words[0], ""
    if "$" in first:
        first, unit = first.replace("$", ""), "$"
    if first.endswith("%"):
        first, unit = first[:-1], "%"
    try:
        number = Decimal(first.replace(",", ""))
    except InvalidOperation:
        return None
    rest = words[1:]
    if rest and rest[0].lower() in _SCALES:
        number, rest = number.scaleb(_SCALES[rest[0].lower()]), rest[1:]
    spoken = []
    for word in rest:
        if word.startswith(("(", "[")) or (word[:1].isdigit() and "/" not in word):
            break
        spoken.append(word.lower().rstrip(";,"))
        if word.endswith(";"):
            break
    return Amount(number=number, unit=unit or " ".join(spoken))


def date_of(text: str) -> tuple[int, int, int] | None:
    """(year, month, day) of the first date in ``text``, zeros for what it does not say; None without a year."""
    words = text.replace(",", " ").replace("(", " ").replace(")", " ").split()
    for place, word in enumerate(words):
        if len(word) == 4 and word.isdigit():
            before = [each.lower() for each in words[max(place - 2, 0) : place]]
            month = next((_MONTHS.index(each[:3]) + 1 for each in before if each[:3] in _MONTHS), 0)
            day = next((int(each) for each in before if each.isdigit() and len(each) <= 2), 0)
            return int(word), month, day if month else 0
    return None


def same(gold: str, value: str, kind: str) -> bool:
    """Whether ``gold`` is what the text ``value`` of a page's line says."""
    if kind == "number":
        given, found = amount_of(gold), amount_of(value)
        if given is None or found is None or given.number != found.number:
            return False
        return not given.unit or found.unit.startswith(given.unit) or given.unit in ("%", "$")
    if kind == "date":
        return date_of(gold) is not None and date_of(gold) == date_of(value)
    spoken = plain_words(value.partition(";")[0])
    return plain_words(gold) == plain_words(first_value(value)) or spoken.startswith(plain_words(gold))


def borders(value: str) -> list[tuple[str, Decimal]]:
    """(country as written, km) of ``Belgium 130 km; France 69 km``; parts that are not of that form are left out."""
    found = []
    for part in value.split(";"):
        words = first_value(part).split()
        if len(words) >= 3 and words[-1] == "km" and (amount := amount_of(" ".join(words[-2:]))):
            found.append((" ".join(words[:-2]), amount.number))
    return found


def partners(value: str) -> list[tuple[str, Decimal]]:
    """(country as written, percent) of ``Germany 18%, France 15% (2023)``, in the page's order."""
    found = []
    for part in first_value(value).split(","):
        words = part.split()
        if len(words) >= 2 and words[-1].endswith("%") and (amount := amount_of(words[-1])):
            found.append((" ".join(words[:-1]), amount.number))
    return found


def greatest(found: Sequence[tuple[str, Decimal]]) -> str | None:
    """The name with the greatest number; None where two share it or there is none."""
    ranked = sorted(found, key=lambda each: each[1], reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def known_as(name: str) -> str:
    """A name for comparing: folded words without ``the``."""
    return " ".join(word for word in folded(name).replace("&", "and").split() if word != "the")


def brief(value: str, kind: str) -> str:
    """What an answer writes of a line's ``value``: the amount with a short unit, or the words before a bracket."""
    if kind == "number":
        words = value.split()
        taken, rest = words[:1], words[1:]
        if rest and rest[0].lower() in _SCALES:
            taken, rest = [*taken, rest[0]], rest[1:]
        unit = []
        for word in rest:
            if word[:1] in "([" or word[:1].isdigit():
                break
            unit.append(word.rstrip(";"))
        short = unit and not taken[0].endswith("%") and len(" ".join(unit)) <= _LONGEST and "/" not in "".join(unit)
        return " ".join([*taken, *(unit if short else ())]).rstrip(";,")
    if kind == "currency":
        return value.partition(" (")[0]
    return first_value(value)


_LONGEST = 14  # characters of a unit
