"""Demonstrations over the corpus's questions: serial, parallel and spawning ones, as scripts act.

For pretrained weights (``sft.data=teacher``): a policy from scratch cannot read these pages.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random

from envs.base import Environment, Task, TaskStream
from envs.research.factbook.reference import CREATE, WORKER, ReferencePolicy, Style, subagent_act
from envs.teacher import Action, Demonstration, History, Part, Seen, Words

_SAMPLES = 2000  # questions for the vocabulary
_ALONE = 0.4  # share of serial demonstrations without the spawning tools: single agents have none
_CALLS = ({"queries": [""]}, {"page": ""}, {"page": "", "text": ""}, {"agent": WORKER, "prompt": ""}, CREATE[1])


class CorpusTeacher:
    """Shows how the questions of ``environment``'s train split are solved."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._stream = lru_cache(2)(self._streamed)

    def _streamed(self, seed: int) -> TaskStream:
        return self._environment.task_stream("train", seed + 10_000)  # another order than training's

    def words(self, seed: int) -> Words:
        """Questions; what pages say is not learnt by heart."""
        stream = self._stream(seed)
        return Words(texts=[stream[index].prompt for index in range(_SAMPLES)], calls=_CALLS)

    def exercise(self, rng: Random) -> list[Part]:
        """A question, and the search for all that it names."""
        task = self._stream(0)[rng.randrange(_SAMPLES)]
        calls = ReferencePolicy("serial").act(task, [])
        assert not isinstance(calls, str)
        return [Part(said=task.prompt), Part(calls=[(0, name, arguments) for name, arguments in calls])]

    def demonstration(self, index: int, *, seed: int, parallel: float, wrong: float) -> Demonstration:
        """Demonstration ``index``: a question of the stream, solved in a drawn style."""
        task = self._stream(seed)[index]
        rng = Random(f"{seed}:{index}")
        style = draw_style(task, rng, parallel=parallel, wrong=wrong)
        policy = ReferencePolicy(style, seed=rng.randrange(2**31))
        spawning = style != "serial" or rng.random() >= _ALONE

        def orchestrator(history: History, seen: Seen) -> Action:
            return policy.act(task, history)

        return Demonstration(task=task, spawning=spawning, orchestrator=orchestrator, subagent=subagent_act)


def draw_style(task: Task, rng: Random, *, parallel: float, wrong: float) -> Style:
    """The style in which ``task`` is shown."""
    roll = rng.random()
    if task.oracle is not None and task.oracle.width > 0:
        return "parallel" if roll < parallel else "partial" if roll < parallel + 0.05 else "serial"
    return "wrong" if roll < wrong else "serial"
