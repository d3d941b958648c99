"""Packs episodes for the page: compressed, with sampled tokens, within a size limit.

A packed episode is base64 of a gzip stream of: the length of the JSON part (uint32); the JSON part, which is
:func:`parl.report.timeline.episode_to_timeline` padded to a multiple of four bytes; the sampled tokens of all
turns as positions in ``vocab`` (uint32); their log-probs (uint16). All numbers are little endian. The JSON
part also has ``vocab`` ([token id, its text] of each token) and ``n_tokens``; each turn has ``first`` and
``held`` (the start and number of its tokens in the page) and ``version`` (of the policy). A log-prob is
stored as its negative in thousandths, at most 65,535.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from model.tokenizer.tokenizer import Tokenizer
from parl.report.timeline import Cut, episode_to_timeline
from parl.shown.redaction import redact
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, Trace, Turn

LIMIT = 9_000_000  # bytes of all packed episodes of a page
# Levels of truncation for an episode that is too large: (texts, tokens)
_LADDER = (
    (Cut(), True),
    (Cut(text=4000, result=1500), True),
    (Cut(text=1500, result=600), True),
    (Cut(text=600, result=200), False),
    (Cut(text=80, result=40), False),
)


def pack(episode: Episode, tokenizer: Tokenizer | None, limit: int = LIMIT) -> tuple[str, str] | None:
    """(the packed episode, what was left out); None if it always has more than ``limit`` bytes.

    Without a tokenizer tokens are shown by their ids.
    """
    for number, (cut, tokens) in enumerate(_LADDER):
        packed = base64.b64encode(gzip.compress(_container(episode, tokenizer, cut, tokens), 6, mtime=0)).decode()
        if len(packed) <= limit:
            return packed, "" if not number else f"texts cut to {cut.text} characters{'' if tokens else ', no tokens'}"
    return None


def _container(episode: Episode, tokenizer: Tokenizer | None, cut: Cut, tokens: bool) -> bytes:
    whole = episode_to_timeline(episode, cut)
    data = redact(whole)
    tokens = tokens and data == whole  # tokens would spell what was redacted
    ids: list[int] = []
    logprobs: list[float] = []
    for trace, agent in zip(episode.traces, data["agents"], strict=True):
        for turn, shown in zip(trace.turns, agent["turns"], strict=True):
            shown["first"] = len(ids)
            shown["version"] = max(trace.versions[turn.start : turn.end], default=-1)
            if tokens:
                ids += trace.tokens[turn.start : turn.end]
                logprobs += trace.logprobs[turn.start : turn.end]
            shown["held"] = len(ids) - shown["first"]
    vocab, places = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
    data["vocab"] = [[index, _text(tokenizer, index)] for index in vocab.tolist()]
    data["n_tokens"] = len(ids)
    # lone surrogates from a model, in an agent's name or an argument, cannot be encoded
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
    text += b" " * (-len(text) % 4)
    thousandths = np.nan_to_num(-1000.0 * np.asarray(logprobs, dtype=np.float64), nan=65_535, posinf=65_535)
    arrays = (places.astype("<u4"), np.clip(np.rint(thousandths), 0, 65_535).astype("<u2"))
    return np.uint32(len(text)).astype("<u4").tobytes() + text + b"".join(array.tobytes() for array in arrays)


def _text(tokenizer: Tokenizer | None, index: int) -> str:
    """A token's text; empty without a tokenizer, or if it has no such token."""
    return tokenizer.decode([index]) if tokenizer and 0 <= index < tokenizer.vocab_size else ""


def find_tokenizer(folders: Iterable[Path], episodes: Iterable[Episode]) -> Tokenizer | None:
    """The first ``tokenizer.json`` in ``folders`` whose tokens decode to these episodes' texts; None if none.

    Another run's vocabulary would show wrong texts.
    """
    turns = [
        (trace, turn)
        for episode in episodes
        for trace in episode.traces
        for turn in trace.turns
        if _says(turn) and trace.tokens
    ]
    for folder in folders:
        if not (folder / "tokenizer.json").is_file():
            continue
        try:
            tokenizer = Tokenizer.load(folder)
        except ValueError:
            continue
        if turns and all(_spells(tokenizer, trace, turn) for trace, turn in turns[:: max(1, len(turns) // 20)]):
            return tokenizer
    return None


def _says(turn: Turn) -> list[str]:
    """Strings that must occur among the decoded tokens of ``turn``."""
    return [text for text in (turn.content.strip(), *(call.name for call in turn.calls)) if text]


def _spells(tokenizer: Tokenizer, trace: Trace, turn: Turn) -> bool:
    ids = trace.tokens[turn.start : turn.end]
    if not ids or max(ids) >= tokenizer.vocab_size or min(ids) < 0:
        return False
    text = tokenizer.decode(ids)
    return all(part in text for part in _says(turn))


def heading(episode: Episode, packed: str, note: str, **labels: Any) -> dict[str, Any]:
    """An episode's entry in the list of the page; ``labels``: where it comes from."""
    return {
        **labels,
        "task": episode.task.key,
        "index": episode.index,
        "family": episode.task.family,
        "width": episode.task.width,
        "status": str(episode.status),
        "subagents": len(episode.subagents),
        "critical_steps": critical_steps(episode),
        "note": note,
        "packed": packed,
    }
