"""Scores by a command over the answer, in the sandbox.

Its working folder holds ``answer.txt``, ``task.json`` (``prompt`` and the gold's ``data``) and the files that
``data.files`` maps from name to text. It scores by ``reward.txt``, a number or a JSON object with a ``score``,
or else by its exit code: 0 is the highest score, any other the lowest. ``python`` is the interpreter that runs parl.
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
_ABSENT = (126, 127)  # a shell's codes for a program that cannot be run


async def by_command(section: CommandSection, episode: Episode, low: float, high: float) -> Score:
    """The score of the answer. ValueError if the command cannot run or writes no number."""
    gold = episode.task.gold
    program, *arguments = gold.command or section.argv
    argv = [_PYTHON if program == "python" else program, *arguments]
    about = {"prompt": episode.task.prompt, "data": gold.data}
    answer = episode.answer.encode("utf-8", "replace")  # lone surrogates
    files = {**gold.data.get("files", {}), ANSWER: answer, TASK: json.dumps(about)}
    readable = [str(path) for path in section.readable]
    async with Sandbox(required=section.level, readable=readable, warm=0) as sandbox:
        ran = await sandbox.run(argv, deadline_s=section.deadline_s, files=files, collect=[REWARD])
    if ran.code in _ABSENT:
        raise ValueError(f"the command {' '.join(argv)} cannot be run: {ran.stderr.strip()[-200:]}")
    if ran.why:  # a limit stopped it
        return Score(value=low, success=False, parts={"stopped": 1.0}, low=low, high=high)
    if REWARD in ran.files:
        return as_score(_read(ran.files[REWARD]), low, high, REWARD)
    return Score(value=high if ran.code == 0 else low, low=low, high=high)


def _read(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"the command wrote {text[:80]!r} to {REWARD}, not a number or a JSON object") from None
