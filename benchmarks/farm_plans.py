"""Plans that a scripted orchestrator plays through the real swarm, for ``benchmarks/farm.py``.

A plan is a list of turns, each a tuple of moves, and how it answers. It may use only what it knows: a name counts as
known if it stands in the question or in a text that the orchestrator has read, and an answer holds the values that it
has read, so that no edit of a plan can make it clairvoyant. Sub-agents are scripted too: they look up what they are
asked for, or do as their prompt says (``say WORDS``: repeat them without a tool; ``loop``: search until the budget
ends).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.farm_deep import FEWEST_ROWS, MIX, next_call, with_calls
from envs.base import Role, Task
from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.reference import CREATE, NOT_FOUND, WORKER, Action, pick_hit, subagent_act
from envs.world.wording import answer_table, conclusion
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer
from rewards.score import measure
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import History, ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.swarm.budget import critical_budget
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

ROOT = Path(__file__).resolve().parents[1]
BUDGET = BudgetConfig(
    direct_calls=1000, turn_tokens=10**6, total_tokens=10**9, orchestrator_steps=200, critical_factor=2
)

# What is done (create, search, find, open, assign, refused: assign to nobody, or those of farm_deep), and the name or
# prompt
Move = tuple[str, str]
WORDY = "Please look up and tell me what is known about the "  # before a prompt: more words than the question has
Answer = Literal["known", "blank", "guess", "junk", "header", "names", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Turns of moves, then an answer: ``known`` = all that was read, for the first ``rows`` rows.

    ``blank``: names without values. ``guess``: names with one value that is nobody's. ``names``: only the names that
    were found, without values. ``junk``: words. ``header``: a table without rows. ``none``: it never answers.
    ``extra`` rows of nonsense are added, and ``twice`` repeats every row.
    """

    turns: tuple[tuple[Move, ...], ...]
    answer: Answer = "known"
    rows: int | None = None
    extra: int = 0
    twice: bool = False

    def with_moves(self, turn: int, *moves: Move) -> Plan:
        """The plan with ``moves`` added to ``turn``."""
        changed = (*self.turns[:turn], (*self.turns[turn], *moves), *self.turns[turn + 1 :])
        return replace(self, turns=changed)

    def before(self, *turns: tuple[Move, ...]) -> Plan:
        """The plan with ``turns`` before its own."""
        return replace(self, turns=(*turns, *self.turns))


class Stage:
    """A world, its tools and a tokenizer: plays plans. Close it."""

    def __init__(
        self, tokenizer: Tokenizer | None = None, *, rows: int = 12, attributes: int = 1, deep: bool = False
    ) -> None:
        """``deep``: a world of tasks about dossiers alone."""
        folder = next((ROOT / "configs" / "starters").iterdir()) if tokenizer is None else None
        self._chat = KimiChat(tokenizer or load_tokenizer(folder or ROOT))
        config = WorldConfig(entities=240, widths=(rows, rows), attributes=(attributes, attributes), hops=(3, 3))
        if deep:
            config = WorldConfig(entities=240, mix=MIX, deep_widths=(rows, rows))
        self.environment = WorldEnvironment(config)

    def task(self, family: str, number: int = 0) -> Task:
        """The ``number``-th task of ``family``; its plan also has the ``steps`` of a chain, as (label, name)."""
        stream, found = self.environment.task_stream("train", 5), []
        for index in range(10_000):
            task = stream[index]
            few = task.family in ("deep_list", "two_phase") and len(task.gold.rows) < FEWEST_ROWS
            if task.family == family and not few:
                found.append(task)
            if len(found) > number:
                return self._with_steps(found[number])
        raise ValueError(f"no task {number} of family {family}")

    def _with_steps(self, task: Task) -> Task:
        entities = self.environment.world.knowledge(task.split).entities
        task = with_calls(task, entities)
        if "hops" not in task.plan:
            return task
        name = task.plan["names"][0]
        steps: list[tuple[str, str]] = []
        for hop in task.plan["hops"]:
            steps.append((hop, name))
            name = entities[name].relations[hop]
        return replace(task, plan=task.plan | {"steps": [*steps, (task.plan["attributes"][0], name)]})

    async def play(self, task: Task, plan: Plan) -> Episode:
        """The episode of ``plan``, measured but not yet paid."""

        def pool(trace: Trace) -> ScriptedEngine:
            if trace.role is Role.ORCHESTRATOR:
                return ScriptedEngine(trace, self._chat, lambda history: act(task, plan, history))
            return ScriptedEngine(trace, self._chat, lambda history: worker(trace.prompt, history))

        settings = SwarmSettings(chat=self._chat, pool=pool, budget=BUDGET)
        allowed = critical_budget(task, BUDGET)
        episode = await run_episode(task, self.environment, settings, index=0, seed=0, critical_budget=allowed)
        if episode.void:
            raise RuntimeError(f"{task.key}: {episode.error}")
        measure(episode)
        return episode

    async def close(self) -> None:
        """Close the world's tools."""
        await self.environment.close()


def worker(prompt: str, history: History) -> Action:
    """A sub-agent's next turn."""
    order, _, words = prompt.partition(" ")
    if order.casefold() == "say":
        return words or NOT_FOUND
    if order.casefold() == "loop":
        return [("search", {"query": words})]
    return subagent_act(prompt.removeprefix(WORDY), history)


def act(task: Task, plan: Plan, history: History) -> Action:
    """The orchestrator's next turn under ``plan``."""
    if len(history) < len(plan.turns):
        calls = [_call(task, move, history) for move in plan.turns[len(history)]]
        return calls or [("search", {"query": "nothing"})]
    if plan.answer == "none":
        return [("search", {"query": "nothing"})]
    return _answer(task, plan, read(history))


def read(history: History) -> str:
    """All texts that the orchestrator has read."""
    return "\n".join(result for turn in history for _, _, result in turn)


def knows(task: Task, name: str, text: str) -> bool:
    """Whether ``name`` stands in the question or in what was read."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", known) for known in (task.prompt, text))


def _call(task: Task, move: Move, history: History) -> tuple[str, dict[str, Any]]:
    kind, about = move
    if kind == "create":
        return CREATE
    if kind in ("assign", "refused"):
        return "assign_task", {
            "agent": WORKER if kind == "assign" else "nobody",
            "prompt": _spoken(task, about, history),
        }
    if not knows(task, about, read(history)):
        about = "unknown"
    if kind in ("dig", "know", "group"):
        return next_call(task, kind, about, history, read(history))
    if kind == "search":
        return "search", {"query": about}
    hits = [
        result for turn in history for name, given, result in turn if (name, given.get("query")) == ("search", about)
    ]
    url = pick_hit(about, hits[0]) if hits else None
    if kind == "open":
        return "open_page", {"url": url or "p0"}
    labels = (*task.plan["attributes"], *task.plan.get("hops", ()), *_link(task))
    return "find_in_page", {"url": url or "p0", "pattern": "|".join(labels)}


def _link(task: Task) -> tuple[str, ...]:
    """The label by which a row names the next one, in a linked list."""
    return ("next",) if task.family == "swap" else ()


def _spoken(task: Task, prompt: str, history: History) -> str:
    """The prompt ``LABELS of NAME``; one about a name that is not known becomes nonsense."""
    labels, _, name = prompt.partition(" of ")
    return prompt if not name or knows(task, name, read(history)) else f"{labels} of nobody"


def _value(text: str, label: str, name: str) -> str:
    """The value of ``label`` of ``name`` that was read, or nothing."""
    found = re.search(rf"^{re.escape(label)} \| {re.escape(name)} \| (.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def _answer(task: Task, plan: Plan, text: str) -> str:
    attributes: list[str] = task.plan["attributes"]
    if plan.answer == "junk":
        return "Answer: done"
    if task.gold.kind == "exact":
        read_values = re.findall(rf"^{re.escape(attributes[0])} \| .+ \| (.+)$", text, re.MULTILINE)
        known = task.gold.answers[0] if task.gold.answers[0] in read_values and plan.answer == "known" else "unknown"
        return conclusion("", known)
    names = [name for name, *_ in task.gold.rows if knows(task, name, text)][: plan.rows]
    if plan.answer == "header":
        names = []
    rows = [[name, *(_cell(plan, _value(text, label, name)) for label in attributes)] for name in names]
    rows += [[f"Nobody{i}", *("nothing" for _ in attributes)] for i in range(plan.extra)]
    return answer_table(("name", *attributes), [row for row in rows for _ in range(1 + plan.twice)])


def _cell(plan: Plan, value: str) -> str:
    return {"known": value, "guess": "0"}.get(plan.answer, "")


# ---------------------------------------------------------------- honest plans


def names_of(task: Task) -> list[str]:
    """The names of the rows of a table, or the entity that a single value is asked of."""
    return [row[0] for row in task.gold.rows] or list(task.plan["names"])


def asked(task: Task, name: str) -> str:
    """The prompt for a sub-agent that looks up one row."""
    return f"{' and '.join([*task.plan['attributes'], *_link(task)])} of {name}"


def renumbered(prompt: str, number: int) -> str:
    """``LABELS of NAME`` as ``LABELS, NUMBER. NAME``: other words for the same question."""
    labels, _, name = prompt.partition(" of ")
    return f"{labels}, {number}. {name}" if name else prompt


def looks(task: Task, name: str) -> tuple[Move, ...]:
    """The calls, one after another, by which the orchestrator learns a row itself."""
    calls = task.plan.get("calls", {}).get(("dig", name))
    return (("search", name), ("find", name)) if calls is None else (("dig", name),) * calls


def opening(task: Task, how: Literal["serial", "direct", "parallel"] = "direct") -> tuple[tuple[Move, ...], ...]:
    """What must be read before the rows are known: the group's page, before it whose group it is, or nothing.

    ``how`` the candidates of two_phase are looked up.
    """
    group = task.plan.get("group")
    turns: list[tuple[Move, ...]] = [] if group is None else [(("search", group),), (("open", group),)]
    if "candidates" not in task.plan:
        return tuple(turns)
    names, chosen = task.plan["candidates"], task.plan["chosen"]
    each: list[tuple[Move, ...]] = [(("know", name),) * task.plan["calls"]["know", name] for name in names]
    if how == "parallel":
        asking = [("assign", f"{task.plan['known']} of {name}") for name in names]
        first: list[tuple[Move, ...]] = [(("create", ""), *asking), (("group", chosen),), (("group", chosen),)]
        return (*first, *turns)
    looked = [(move,) for calls in each for move in calls] if how == "serial" else rounds(each)
    return (*looked, (("group", chosen),), *turns)


def rounds(each: Sequence[tuple[Move, ...]]) -> list[tuple[Move, ...]]:
    """The first move of each in one turn, the second of each in the next, and so on."""
    longest = max(map(len, each), default=0)
    return [tuple(moves[i] for moves in each if i < len(moves)) for i in range(longest)]


def serial(task: Task) -> Plan:
    """One call a turn."""
    if "steps" in task.plan:
        return path(task)
    calls = [(move,) for name in names_of(task) for move in looks(task, name)]
    return Plan(turns=(*opening(task, "serial"), *calls))


def direct(task: Task) -> Plan:
    """All searches in one turn, all pages in the next."""
    return Plan(turns=(*opening(task), *rounds([looks(task, name) for name in names_of(task)])))


def parallel(task: Task) -> Plan:
    """A sub-agent for each row, at once."""
    spawns = [("assign", asked(task, name)) for name in names_of(task)]
    first = opening(task, "parallel")
    created = any(move[0] == "create" for turn in first for move in turn)
    return Plan(turns=(*first, (*([] if created else [("create", "")]), *spawns)))


def waves(task: Task, size: int) -> Plan:
    """Sub-agents for ``size`` rows at a time."""
    spawns = [("assign", asked(task, name)) for name in names_of(task)]
    parts = [tuple(spawns[i : i + size]) for i in range(0, len(spawns), size)]
    return Plan(turns=(*opening(task), (("create", ""), *parts[0]), *parts[1:]))


def mixed(task: Task, delegated: int) -> Plan:
    """The first ``delegated`` rows by sub-agents, the others by direct calls beside them."""
    names = names_of(task)
    spawns = [("assign", asked(task, name)) for name in names[:delegated]]
    first, *rest = rounds([looks(task, name) for name in names[delegated:]]) or [()]
    return Plan(turns=(*opening(task), (("create", ""), *spawns, *first), *rest))


def path(task: Task, delegated: Sequence[int] = ()) -> Plan:
    """A chain over the task's steps of (label, name): those at ``delegated`` by a sub-agent each, in turn."""
    turns: list[tuple[Move, ...]] = []
    for number, (label, name) in enumerate(task.plan["steps"]):
        if number in delegated:
            create = (("create", ""),) if number == min(delegated) else ()
            turns.append((*create, ("assign", f"{label} of {name}")))
        else:
            turns += [(move,) for move in looks(task, name)]
    return Plan(turns=tuple(turns))


def in_order(task: Task, delegated: int) -> Plan:
    """A linked list, row by row: the first ``delegated`` rows by a sub-agent each, in turn."""
    names = names_of(task)
    spawns: list[tuple[Move, ...]] = [(("assign", asked(task, name)),) for name in names[:delegated]]
    spawns[0] = (("create", ""), *spawns[0])
    return Plan(turns=(*opening(task), *spawns, *((move,) for name in names[delegated:] for move in looks(task, name))))


def honest(task: Task) -> dict[str, Plan]:
    """Plans that get all there is, by name; with sub-agents also where these save nothing (width 0 of the oracle)."""
    if task.gold.kind == "exact":
        last, all_of = len(task.plan["steps"]) - 1, range(len(task.plan["steps"]))
        delegated = {"the last hop delegated": [last], "the first hop delegated": [0], "every hop delegated": [*all_of]}
        return {"serial": path(task)} | {name: path(task, hops) for name, hops in delegated.items()}
    count = len(names_of(task))
    plans = {"serial": serial(task), "direct": direct(task), "parallel": parallel(task)}
    plans |= {f"{n} delegated": mixed(task, n) for n in {1, count // 2, count - 1}}
    return plans | {"two waves": waves(task, (count + 1) // 2)}


def learned(task: Task, plan: Plan) -> list[tuple[int, str]]:
    """(turn, name) of the rows that the orchestrator looks up itself: when it has the last call's result."""
    found: list[tuple[int, str]] = []
    for name in names_of(task):
        last = looks(task, name)[-1]
        done = [i for i, turn in enumerate(plan.turns) for move in turn if move == last]
        needed = len(looks(task, name)) if last[0] == "dig" else 1
        if len(done) >= needed:
            found.append((done[needed - 1], name))
    return found
