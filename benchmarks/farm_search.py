"""Random edits of plans that look for pay without work: the search of ``benchmarks/farm.py``.

From honest plans, for tasks of nine families and for λ at its start, at half and at 0, a climb accepts edits that are
paid at least as much. Every plan that it plays is checked at all three λ. It is a find if

- it is paid more than every honest plan, although its item-F1 is not higher and its cost (critical steps, or what the
  reward prices) is not lower than that of the honest plan that is paid best. Where sub-agents save nothing (width 0 of
  the oracle) a plan with one is honest only if it takes no more critical steps than one agent, as with two rows:
  delegated hops of a chain are finds; or
- the edit that made it only added what gives nothing (empty, repeated, refused, nonsensical, echoing or endless
  sub-agents, questions whose answer was read before), and it is paid more than without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from benchmarks.farm_plans import WORDY, Move, Plan, Stage, asked, honest, learned, looks, names_of, renumbered
from envs.base import Task
from rewards.base import Weights
from rewards.parl_reward import Parl, cost_of
from rewards.score import score_episode
from rollouts.episode import Episode

FAMILIES = ("wide", "list", "chain", "single_fact")
DEEP = ("deep", "long", "deep_list", "two_phase", "trail")  # in a world of their own
SHARES = (1.0, 0.5, 0.0)  # of λ1 and λ2 at the start
_EPS = 1e-9
_PATIENCE = 25  # edits from one honest plan before the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """A plan that is paid too much."""

    family: str
    share: float
    paid: float
    bound: float
    why: str
    plan: Plan


@dataclass(slots=True, kw_only=True)
class _Played:
    episode: Episode
    value: tuple[float, float]  # item-F1, and the cost that the reward prices
    paid: dict[float, float]  # by share of λ


class Climb:
    """The search on one task."""

    def __init__(self, stage: Stage, task: Task, reward: Parl, rng: Random) -> None:
        self._stage, self._task, self._reward, self._rng = stage, task, reward, rng
        self._played: dict[Plan, _Played] = {}
        self._facts: dict[str, float] = {}  # what the honest plans, as a group, say about costs
        self.finds: list[Find] = []

    async def run(self, share: float, budget: int) -> None:
        """Play ``budget`` edited plans, climbing in the pay at ``share``."""
        starts = list(honest(self._task).values())
        if first := not self._played:
            group = [await self._stage.play(self._task, plan) for plan in starts]
            self._facts = dict(self._reward.noted(group, [one for one in group if one.metrics["success"]]))
        played = [(plan, await self._play(plan)) for plan in starts]
        self._honest = [one for plan, one in played if not spawns(plan) or self._may_spawn(one.episode)]
        for plan, one in played if first else ():
            self._check(one, one, plan, False)
        for number in range(budget):
            if number % _PATIENCE == 0:
                plan = self._rng.choice(starts)
            edited, adds_nothing = self._edited(plan)
            before, after = await self._play(plan), await self._play(edited)
            self._check(before, after, edited, adds_nothing)
            if after.paid[share] >= before.paid[share] - _EPS:
                plan = edited

    def _may_spawn(self, episode: Episode) -> bool:
        oracle = self._task.oracle
        return oracle is None or oracle.width > 0 or episode.metrics["critical_steps"] <= oracle.serial_steps

    async def _play(self, plan: Plan) -> _Played:
        if plan not in self._played:
            episode = await self._stage.play(self._task, plan)
            episode.metrics |= self._facts
            value = episode.metrics["item_f1"], cost_of(episode, self._reward.critical, self._reward.latency)
            paid = {share: self._pay(episode, share) for share in SHARES}
            self._played[plan] = _Played(episode=episode, value=value, paid=paid)
        return self._played[plan]

    def _pay(self, episode: Episode, share: float) -> float:
        start = self._reward.weights(0, 2)
        weights: Weights = start | {name: share * start[name] for name in ("parallel", "finish")}
        score_episode(episode, self._reward, weights)
        return episode.rewards["total"]

    def _check(self, before: _Played, after: _Played, plan: Plan, adds_nothing: bool) -> None:
        for share, paid in after.paid.items():
            best = max(self._honest, key=lambda one: (one.paid[share], -one.value[1]))
            (score, steps), (honest_score, honest_steps) = after.value, best.value
            place = {"family": self._task.family, "share": share, "paid": paid, "plan": plan}
            if paid > best.paid[share] + _EPS and score <= honest_score and steps >= honest_steps:
                self.finds.append(Find(bound=best.paid[share], why="paid more than honest work", **place))
            elif adds_nothing and paid > before.paid[share] + _EPS and score <= before.value[0]:
                self.finds.append(Find(bound=before.paid[share], why="paid for adding nothing", **place))

    # ---------------------------------------------------------------- edits

    def _edited(self, plan: Plan) -> tuple[Plan, bool]:
        """An edit of ``plan``, and whether it only adds what gives nothing."""
        if self._rng.random() < 0.5:
            return self._with_nothing(plan), True
        edits: list[Callable[[Plan], Plan]] = [
            *(self._dropped, self._moved, self._split, self._merged, self._delegated, self._curious, self._answered),
        ]
        return self._rng.choice(edits)(plan), False

    def _with_nothing(self, plan: Plan) -> Plan:
        rng, tag = self._rng, self._rng.randrange(10**6)
        asked_before = [(i, move) for i, turn in enumerate(plan.turns) for move in turn if move[0] == "assign"]
        read = learned(self._task, plan)
        label = self._task.plan["attributes"][0]
        kinds: list[tuple[int, str]] = [(0, text) for text in ("", f" {'.' * rng.randint(1, 3)}")]
        kinds += [
            (0, f"{label} of Nowhere{tag}"),
            (0, f"say {tag}"),
            (0, f"say {self._task.prompt}"),
            (0, f"loop {tag}"),
        ]
        for i, (_, old) in asked_before:
            kinds.append((i, rng.choice((old, old.upper(), f"{old}.", renumbered(old, rng.randint(2, 9))))))
        for i, name in read if self._task.gold.kind == "table" else ():
            kinds.append((i + 1, rng.choice(("", WORDY)) + asked(self._task, name)))
        first, prompt = rng.choice(kinds)
        moves: list[Move] = [("create", "")] + [("assign", prompt)] * rng.choice((1, 2, 16))
        if rng.random() < 0.1:
            moves = [("refused", prompt)]
        if first >= len(plan.turns) or rng.random() < 0.2:  # in a turn of its own
            place = rng.randint(min(first, len(plan.turns)), len(plan.turns))
            return replace(plan, turns=(*plan.turns[:place], tuple(moves), *plan.turns[place:]))
        return plan.with_moves(rng.randrange(first, len(plan.turns)), *moves)

    def _dropped(self, plan: Plan) -> Plan:
        if not plan.turns:
            return plan
        turn = self._rng.randrange(len(plan.turns))
        moves = list(plan.turns[turn])
        if len(moves) > 1 and self._rng.random() < 0.7:
            del moves[self._rng.randrange(len(moves))]
            return _with_turn(plan, turn, moves)
        return replace(plan, turns=plan.turns[:turn] + plan.turns[turn + 1 :])

    def _moved(self, plan: Plan) -> Plan:
        if len(plan.turns) < 2:
            return plan
        source, target = (self._rng.randrange(len(plan.turns)) for _ in range(2))
        moves = list(plan.turns[source])
        moved = moves.pop(self._rng.randrange(len(moves)))
        return _with_turn(plan, source, moves).with_moves(target, moved) if moves and source != target else plan

    def _split(self, plan: Plan) -> Plan:
        if not plan.turns:
            return plan
        turn = self._rng.randrange(len(plan.turns))
        moves = plan.turns[turn]
        if len(moves) < 2:
            return plan
        cut = self._rng.randrange(1, len(moves))
        return replace(plan, turns=(*plan.turns[:turn], moves[:cut], moves[cut:], *plan.turns[turn + 1 :]))

    def _merged(self, plan: Plan) -> Plan:
        if len(plan.turns) < 2:
            return plan
        turn = self._rng.randrange(len(plan.turns) - 1)
        both = plan.turns[turn] + plan.turns[turn + 1]
        return replace(plan, turns=(*plan.turns[:turn], both, *plan.turns[turn + 2 :]))

    def _delegated(self, plan: Plan) -> Plan:
        """A row is asked of a sub-agent instead of looked up."""
        name = self._rng.choice(names_of(self._task))
        turns = tuple(tuple(move for move in turn if move not in looks(self._task, name)) for turn in plan.turns)
        turns = tuple(turn for turn in turns if turn)
        moves: tuple[Move, ...] = (("create", ""), ("assign", asked(self._task, name)))
        return replace(plan, turns=turns).with_moves(0, *moves) if turns else replace(plan, turns=(moves,))

    def _curious(self, plan: Plan) -> Plan:
        """A sub-agent finds a true fact that nobody asked for."""
        label = self._rng.choice(("age", "mass", "color", "home", "climate", "speed", "ally", "rival"))
        moves: tuple[Move, ...] = (("create", ""), ("assign", f"{label} of {self._rng.choice(names_of(self._task))}"))
        turns = plan.turns or ((),)
        return replace(plan, turns=turns).with_moves(self._rng.randrange(len(turns)), *moves)

    def _answered(self, plan: Plan) -> Plan:
        answer = self._rng.choice(("known", "known", "blank", "guess", "junk", "header", "none"))
        rows = self._rng.choice((None, None, *range(1, len(names_of(self._task)) + 1)))
        extra, twice = self._rng.choice((0, 0, 0, 1, 8)), self._rng.random() < 0.2
        return replace(plan, answer=answer, rows=rows, extra=extra, twice=twice)


def spawns(plan: Plan) -> bool:
    """Whether a sub-agent is launched."""
    return any(move[0] == "assign" for turn in plan.turns for move in turn)


def _with_turn(plan: Plan, turn: int, moves: list[Move]) -> Plan:
    return replace(plan, turns=(*plan.turns[:turn], tuple(moves), *plan.turns[turn + 1 :]))


async def search(stage: Stage, reward: Parl, budget: int, seed: int, families: Sequence[str] = FAMILIES) -> list[Find]:
    """``budget`` edited plans, in equal parts over ``families`` and λ; deterministic in ``seed``."""
    rng = Random(seed)
    finds: list[Find] = []
    each = -(-budget // (len(families) * len(SHARES)))
    for family in families:
        climb = Climb(stage, stage.task(family, seed % 3), reward, rng)
        for share in SHARES:
            await climb.run(share, each)
        finds += climb.finds
    return finds


def print_finds(finds: list[Find], budget: int, seed: int) -> None:
    """The finds, the largest gain of each family and reason first."""
    where = ", ".join(sorted({find.family for find in finds}))
    print(f"search: {budget} plans (seed {seed}), {len(finds)} finds" + (f" in {where}" if finds else ""))
    best: dict[tuple[str, str], Find] = {}
    for find in finds:
        key = find.family, find.why
        if key not in best or find.paid - find.bound > best[key].paid - best[key].bound:
            best[key] = find
    for find in best.values():
        print(f"  {find.family}, λ at {find.share:g}: {find.why}: {find.paid:.3f} > {find.bound:.3f}: {find.plan}")
