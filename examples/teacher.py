"""A teacher for the environment beside this file, so that a policy from scratch can learn it.

envs: {name: "teacher:TaughtTowns"}
"""

from __future__ import annotations

from random import Random

from environment import Towns

from envs.teacher import Action, Demonstration, History, Part, Seen, Words

CREATE = ("create_subagent", {"name": "worker", "system_prompt": "Look it up."})


class TaughtTowns(Towns):
    """The same towns, with scripted demonstrations."""

    @property
    def teacher(self):
        return Teacher(self)


def asked(prompt: str) -> list[str]:
    """The towns named in a question."""
    return prompt.partition(": ")[2].split(", ")


def table(found: dict[str, str]) -> str:
    """The answer."""
    rows = "".join(f"\n| {town} | {population} |" for town, population in found.items())
    return f"| town | population |\n|---|---|{rows}"


def read(history: History) -> dict[str, str]:
    """The results so far, in call order."""
    lines = [text for turn in history for tool, _, text in turn if tool != "create_subagent"]
    return dict(line.split(": ", 1) for line in lines if ": " in line)


class Teacher:
    """Looks up one town after the other, or lets one sub-agent per town do it."""

    def __init__(self, environment: Towns) -> None:
        self.environment = environment

    def words(self, seed):
        texts = [f"{task.prompt}\n{table(dict(task.gold.rows))}" for task in self.environment.tasks("train")]
        numbers = [f"{n}" for n in range(100)]
        return Words(texts=texts, values=numbers, calls=[{"town": ""}, {"agent": "worker", "prompt": ""}, CREATE[1]])

    def exercise(self, rng: Random) -> list[Part]:
        towns = [f"Town {rng.randrange(300)}" for _ in range(rng.randint(2, 5))]
        calls = [(i, "look_up", {"town": town}) for i, town in enumerate(towns)]
        return [Part(said=", ".join(towns)), Part(calls=calls, wanted=towns)]

    def demonstration(self, index: int, *, seed: int, parallel: float, wrong: float) -> Demonstration:
        task = self.environment.task_stream("train", seed)[index + 7 * seed]
        spawn = Random(f"{seed}:{index}").random() < (parallel if task.width > 3 else wrong)
        towns = asked(task.prompt)

        def orchestrator(history: History, seen: Seen) -> Action:
            found = read(history)
            left = [town for town in towns if town not in found]
            if not left:
                return table({town: found[town] for town in towns})
            if spawn:
                return [CREATE, *(("assign_task", {"agent": "worker", "prompt": f"Ask: {town}"}) for town in left)]
            return [("look_up", {"town": left[0]})]

        def subagent(prompt: str, history: History) -> Action:
            return history[0][0][2] if history else [("look_up", {"town": asked(prompt)[0]})]

        return Demonstration(task=task, spawning=True, orchestrator=orchestrator, subagent=subagent)
