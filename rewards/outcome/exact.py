"""Exact match of a short answer, normalised as SQuAD and HotpotQA do."""

from __future__ import annotations

import re
import string

from envs.base import Gold

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKER = re.compile(r"^\s*(?:exact |final )?answer:", re.IGNORECASE | re.MULTILINE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, gold: Gold) -> bool:
    """Whether the :func:`final_answer` in ``answer`` equals one of ``gold.answers`` or aliases, normalised.

    An empty normalised answer never matches.
    """
    given = normalise_answer(final_answer(answer))
    accepted = {normalise_answer(text) for text in gold.answers}
    aliases = {normalise_answer(alias) for alias, text in gold.aliases.items() if normalise_answer(text) in accepted}
    return bool(given) and given in accepted | aliases


def final_answer(text: str) -> str:
    """The text after the last ``Answer:`` (or ``Exact Answer:``) at a line's start, else the whole text."""
    return _MARKER.split(text)[-1]


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles a/an/the, white space collapsed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
