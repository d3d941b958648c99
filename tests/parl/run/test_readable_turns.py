"""A run that begins with turns nobody can read ends with examples; one that can be read goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from envs.base import Gold, Role, Task
from model.tokenizer.tokenizer import Tokenizer
from parl.errors import UserError
from parl.run.readable_turns import check_readable
from rollouts.episode import CUT, Episode, EpisodeStatus, Trace, Turn

TASK = Task(key="t1", family="wide", split="train", prompt="?", gold=Gold(kind="exact", answers=("x",)))


def episode_of(tokenizer: Tokenizer, turns: list[tuple[str, str]], status=EpisodeStatus.MALFORMED) -> Episode:
    """Turns as text and what the parser said."""
    trace = Trace(agent_id="0", role=Role.ORCHESTRATOR)
    for text, malformed in turns:
        start = len(trace.tokens)
        trace.tokens += tokenizer.encode(text)
        trace.turns.append(Turn(start=start, end=len(trace.tokens), malformed=malformed))
    return Episode(task=TASK, index=3, seed=0, traces=[trace], status=status)


def said(episodes: list[Episode], folder: Path, most: float = 0.5) -> str:
    with pytest.raises(UserError) as error:
        check_readable(episodes, most, folder)
    return str(error.value)


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return tokenizer.save(tmp_path).parent


def test_more_than_half_unread_turns_stop_it_with_examples(tokenizer: Tokenizer, folder: Path):
    bad = [("```python\nsearch()", "no tool named 'f'"), ("again", "no tool named 'f'"), ("x" * 900, "not JSON")]
    text = said([episode_of(tokenizer, [*bad, ("fine", "")])], folder)
    assert text.startswith(
        "75% of the first step's 4 turns cannot be read (trainer.most_unread is 0.5): 3 by the parser"
    )
    assert "t1#3, agent 0: no tool named 'f'\n    wrote: ```python\\nsearch()\n" in text
    assert "agent 0: not JSON\n    wrote: " + "x" * 240 + " … " + "x" * 80 + "\n" in text
    assert "again" not in text and "model.chat" in text and text.endswith("trainer.most_unread=1 goes on all the same")


def test_turns_that_are_cut_are_told_apart(tokenizer: Tokenizer, folder: Path):
    text = said([episode_of(tokenizer, [("Well,", CUT), ("so", CUT), ("no", "not JSON")])], folder)
    assert "1 by the parser, 2 were cut by length" in text and "raise rollouts.budget.turn_tokens" in text


def test_a_run_that_can_be_read_goes_on(tokenizer: Tokenizer, folder: Path):
    half = episode_of(tokenizer, [("a", "not JSON"), ("b", "")])
    check_readable([half], 0.5, folder)
    check_readable([episode_of(tokenizer, [("a", "not JSON")])], 1.0, folder)
    check_readable([episode_of(tokenizer, [])], 0.0, folder)
    failed = episode_of(tokenizer, [("a", "not JSON")], EpisodeStatus.FAILED)  # the machine's doing
    check_readable([failed, replace(failed, status=EpisodeStatus.CANCELLED)], 0.5, folder)
