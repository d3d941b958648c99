"""Malicious strings for terminals, stores and parsers, and a store full of them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from stored import make_episode, wide_task

from rollouts.episode import Episode
from rollouts.store.store import EpisodeStore

STRINGS = (
    "\x1b]0;title\x07",  # the window's title
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",  # a link
    "\x1b]52;c;ZXZpbA==\x07",  # the clipboard
    "\x9b31m\x9d0;t\x9c",  # the same as single C1 codes
    "\x1bP+q544e\x1b\\",  # a device control string
    "over\rwritten\x08\x08\x7f",
    "abc\u202egnp.exe",  # reads backwards
    "\u2066isolated\u2069\u200f",
    "zero\u200bwidth\ufeff\u2060\U000e0041",
    "[red]not red[/]",
    "[/]",
    "[/red][bold",
    "[link=https://evil.example]click[/link]",
    "\\[red]\\",
    ":smile: [blink]x[/blink]",
    "half \ud800 and \udfff",
    "line one\nerror: a forged line\u2028and\u2029more\x85",
    "</script><script>alert(1)</script>",
    "{0} {} %s ${x} {{",
    "nul\x00byte",
)


def hostile_episode(index: int = 0) -> Episode:
    """An episode with all of :data:`STRINGS` in every untrusted text."""
    rng = random.Random(index)

    def text() -> str:
        return " ".join(rng.sample(STRINGS, 4))

    episode = make_episode(wide_task(index), index, spawning=True, right=0.5)
    episode.task = replace(episode.task, prompt=" ".join(STRINGS), family=STRINGS[10] + STRINGS[1], key=f"k{text()}")
    episode.error, episode.answer, episode.limit = text(), text(), text()
    for trace in episode.traces:
        trace.name, trace.prompt, trace.message = text(), text(), text()
        for turn in trace.turns:
            turn.content, turn.malformed = text(), text()
            for call in turn.calls:
                arguments: dict[str, Any] = {text(): text(), "n": [text()]}
                object.__setattr__(call, "name", call.name if call.name == "assign_task" else text())
                object.__setattr__(call, "arguments", arguments)
            turn.results = [replace(result, text=text()) for result in turn.results]
    episode.rewards = {"total": 0.5, STRINGS[0]: 1.0, "[/]": 2.0}
    return episode


def hostile_store(folder: Path, count: int = 4) -> Path:
    """A store of such episodes."""
    store = EpisodeStore(folder)
    store.write(1, [hostile_episode(i) for i in range(count)], policy_version=0)
    return folder


FORBIDDEN = {chr(c) for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}
FORBIDDEN |= set("\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff\u2060")
