"""Scores by a command over the answer, in the sandbox.

Its working folder holds ``answer.txt``, ``task.json`` (``prompt`` and the gold's ``data``) and the files that
``data.files`` maps from name to text. It scores by ``reward.txt``, a number or a JSON object with a ``score``,
or else (with ``reads: exit`` always) by its exit code: 0 is the highest score, any other the lowest. What the command
may have been led to by the answer is the answer's fault: an exit code of 127, a ``reward.txt`` that nobody can read.
Only a command that does not start is an error. ``python`` is the interpreter that runs parl.
"""

from __future__ import annotations

import json
import os
import sys

from envs.base import Score
from envs.sandbox import Sandbox
from rewards.outcome.function import as_score
from rewards.outcome.sections import ANSWER, REWARD, TASK, CommandSection
from rollouts.episode import Episode

_PYTHON = os.path.realpath(sys.executable)  # without its virtual environment, which the sandbox does not show


async def by_command(section: CommandSection, episode: Episode, low: float, high: float) -> Score:
    """The score of the answer, with a part ``stopped`` or ``unreadable`` where that made it the lowest.

    ValueError if the command cannot be started.
    """
    gold = episode.task.gold
    program, *arguments = gold.command or section.argv
    argv = [_PYTHON if program == "python" else program, *arguments]
    about = {"prompt": episode.task.prompt, "data": gold.data}
    answer = episode.answer.encode("utf-8", "replace")  # lone surrogates
    files = {**gold.data.get("files", {}), ANSWER: answer, TASK: json.dumps(about)}
    readable = [str(path) for path in section.readable]
    collect = [REWARD] if section.reads == "file" else []
    async with Sandbox(required=section.level, readable=readable, warm=0) as sandbox:
        ran = await sandbox.run(argv, deadline_s=section.deadline_s, files=files, collect=collect)
    if ran.absent:
        raise ValueError(f"the command {' '.join(argv)} cannot be run: {ran.stderr.strip()[-200:]}")
    if ran.why:  # a limit stopped it
        return Score(value=low, success=False, parts={"stopped": 1.0}, low=low, high=high)
    if REWARD in ran.files:
        return _read(ran.files[REWARD], low, high)
    return Score(value=high if ran.code == 0 else low, low=low, high=high)


def _read(text: bytes, low: float, high: float) -> Score:
    """The score in a reward file; the lowest for text that is none, numbers that are no floats, lists without end."""
    try:
        return as_score(json.loads(text), low, high, REWARD)
    except (ValueError, OverflowError, RecursionError):
        return Score(value=low, success=False, parts={"unreadable": 1.0}, low=low, high=high)
