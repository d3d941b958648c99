"""A small loop that runs scripted policies against the real tools, and small worlds."""

from __future__ import annotations

from dataclasses import dataclass, field

from envs.base import Session, Task, ToolCall
from envs.world.config import WorldConfig
from envs.world.reference import Action, ReferencePolicy, Turn, subagent_act

DEADLINE_S = 10.0


def only(*families: str, **settings) -> WorldConfig:
    """A small world that asks only ``families``."""
    return WorldConfig(**{"entities": 320, "mix": dict.fromkeys(families, 1.0), **settings})


async def call(session: Session, name: str, **arguments) -> str:
    """The text of one tool call."""
    result = await session.call(
        "tester", ToolCall(id=f"{name}:0", name=name, arguments=arguments), deadline_s=DEADLINE_S
    )
    return result.text


@dataclass
class Played:
    """One episode of a scripted policy. ``critical_steps`` as the oracle counts them."""

    answer: str = ""
    critical_steps: int = 0
    assigned: int = 0
    history: list[Turn] = field(default_factory=list)


async def _subagent(session: Session, prompt: str) -> tuple[str, int]:
    history: list[Turn] = []
    while not isinstance(action := subagent_act(prompt, history), str):
        history.append([(name, args, await call(session, name, **args)) for name, args in action])
    return action, len(history) + 1


async def play(policy: ReferencePolicy, task: Task, session: Session, *, lost: frozenset[str] = frozenset()) -> Played:
    """Run ``policy`` to its answer; sub-agents with a prompt in ``lost`` return nothing useful."""
    played = Played()
    while not isinstance(action := policy.act(task, played.history), str):
        turn, longest = [], 0
        for name, args in action:
            if name == "assign_task":
                text, steps = await _subagent(session, args["prompt"])
                text = "error: timeout" if args["prompt"] in lost else text
                longest, played.assigned = max(longest, steps), played.assigned + 1
            else:
                text = "ok" if name == "create_subagent" else await call(session, name, **args)
            turn.append((name, args, text))
        played.history.append(turn)
        played.critical_steps += 1 + longest
        assert len(played.history) < 100, "the policy does not come to an end"
    played.answer, played.critical_steps = action, played.critical_steps + 1
    return played


def right(task: Task, answer: Action) -> bool:
    """Whether ``answer`` is the gold, row by row in the requested order (aliases allowed)."""
    if task.gold.kind == "exact":
        return str(answer).rpartition("\nAnswer: ")[2] in task.gold.answers
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in str(answer).splitlines()]
    rows = [[task.gold.aliases.get(row[0], row[0]), *row[1:]] for row in lines[2:]]
    return lines[0] == list(task.gold.columns) and rows == [list(row) for row in task.gold.rows]
