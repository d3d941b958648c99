"""Which sub-agents count, by hand; ``benchmarks/farm.py`` plays whole episodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envs.base import ErrorKind, Gold, Oracle, Role, Task, ToolCall, ToolResult
from rewards.valid import counting, counts, words
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn

QUESTION = "Give the mass of Ann and Bob."


def call(name: str, **arguments: str) -> ToolCall:
    return ToolCall(id=f"functions.{name}:0", name=name, arguments=arguments)


def read(query: str, text: str, error: ErrorKind | None = None) -> Turn:
    """A turn of the orchestrator's own."""
    return Turn(start=0, end=1, calls=[call("search", query=query)], results=[ToolResult(text=text, error=error)])


def agent(
    prompt: str, message: str, *, tools: int = 1, turn: int = 0, status: TraceStatus = TraceStatus.FINISHED
) -> Trace:
    turns = [Turn(start=0, end=1, calls=[call("search", query="x")]) for _ in range(tools)]
    return Trace(agent_id="", role=Role.SUBAGENT, parent="0", parent_turn=turn, prompt=prompt, message=message,
                 status=status, turns=turns)  # fmt: skip


def episode(*agents: Trace, turns: tuple[Turn, ...] = (), answer: str = "") -> Episode:
    """``agents`` are launched by the orchestrator's last turn but the answer, or by the ``turn`` that they name."""
    for number, trace in enumerate(agents):
        trace.agent_id = f"0/{number}"
    root = [*(turns or [Turn(start=0, end=1, calls=[call("assign_task")])]), Turn(start=1, end=2)]
    task = Task(key="k", family="wide", split="train", prompt=QUESTION, gold=Gold(kind="exact", answers=("1",)))
    orchestrator = Trace(agent_id="0", role=Role.ORCHESTRATOR, turns=root)
    return Episode(
        task=task, index=0, seed=0, traces=[orchestrator, *agents], status=EpisodeStatus.ANSWERED, answer=answer
    )


def count(*agents: Trace, **rest: object) -> int:
    return len(counting(episode(*agents, **rest)))  # pyright: ignore[reportArgumentType]


def test_who_used_a_tool_and_says_something_about_its_prompt_counts():
    assert count(agent("mass of Ann", "mass | Ann | 12"), agent("mass of Bob", "mass | Bob | 14")) == 2


@pytest.mark.parametrize(
    "idle",
    [
        agent("", "mass | Ann | 12"),
        agent(" .. ", "mass | Ann | 12"),
        agent("mass of Ann", ""),
        agent("mass of Ann", "not found"),  # names nothing of what it was asked
        agent("mass of Ann", "Mass of Ann!"),  # repeats its prompt
        agent("say 7", "7", tools=0),
        agent("mass of Ann", "mass | Ann | 12", tools=0),  # nobody used it, and it looked nothing up
        agent("hello", "give the mass", tools=0),  # words of the question
        agent("mass of Ann", "mass | Ann | 12", status=TraceStatus.OVER_BUDGET),
        agent("mass of Ann", "mass | Ann | 12", status=TraceStatus.MALFORMED),
    ],
)
def test_who_did_nothing_for_the_orchestrator_does_not_count(idle: Trace):
    assert count(idle) == 0


def test_a_prompt_counts_once_whatever_its_case_and_punctuation():
    same = [agent(prompt, "mass | Ann | 12") for prompt in ("mass of Ann", "MASS of  Ann", "mass, of Ann.")]
    assert counting(episode(*same)) == same[:1]
    longer = agent("mass of Ann", "mass | Ann | 12 | 13")
    assert counting(episode(same[0], longer)) == same[:1]
    retried = agent("mass of Ann", "", status=TraceStatus.OVER_BUDGET), agent("mass of Ann", "mass | Ann | 12")
    assert counting(episode(*retried)) == [retried[1]]


def test_equal_values_of_two_rows_count_where_the_orchestrator_uses_them():
    twins = [agent("continent of Ann", "Europe"), agent("continent of Bob", "Europe")]
    assert count(*twins) == 0  # terse, and unused
    assert count(*twins, answer="| Ann | Europe |") == 2
    named = [agent(f"continent of {name}", f"continent | {name} | Europe") for name in ("Ann", "Bob")]
    assert count(*named) == 1 and count(*named, answer="| Ann | Europe |") == 2


def test_rewordings_that_say_the_same_count_once_unless_used():
    prompts = ("mass of Ann", "Ann's mass", "tell Ann's mass")
    assert count(*[agent(prompt, "mass | Ann | 12") for prompt in prompts]) == 1


def test_a_row_asked_in_other_words_counts_once_although_its_value_stands_in_the_answer():
    prompts = ("speed, 2. Ann", "speed, 3. Ann", "tell Ann's speed")
    assert count(*[agent(prompt, "speed | Ann | 44") for prompt in prompts], answer="| Ann | 44 |") == 1
    part = [agent("speed and mass of Ann", "speed | Ann | 44 mass | Ann | 12"), agent("mass of Ann", "mass | Ann | 12")]
    assert count(*part, answer="| Ann | 44 | 12 |") == 1
    rows = [agent(f"speed of {name}", f"speed | {name} | 44") for name in ("Ann", "Bob")]  # of two rows
    assert count(*rows, answer="| Ann | 44 | | Bob | 44 |") == 2


def test_reasoning_without_a_tool_counts_where_it_is_used_later():
    judge = agent("which is heavier, Ann or Bob", "the second", tools=0)
    assert count(judge) == 0
    assert count(judge, answer="Answer: second") == 1
    later = (Turn(start=0, end=1, calls=[call("assign_task")]), read("second of the list", "page"))
    assert count(judge, turns=later) == 1
    judge.parent_turn = 1
    assert count(judge, turns=later) == 0  # it had been written before


def test_what_the_orchestrator_had_read_itself_does_not_count():
    ann = agent("mass of Ann", "mass | Ann | 12", turn=1)
    launch = Turn(start=0, end=1, calls=[call("assign_task")])
    assert count(ann, turns=(read("Ann", "mass | Ann | 12"), launch)) == 0
    assert count(ann, turns=(read("Ann", "mass | Ann | 12", ErrorKind.TIMEOUT), launch)) == 1
    assert count(ann, turns=(read("Bob", "mass | Bob | 12"), launch)) == 1  # of somebody else
    assert count(ann, turns=(launch, launch, read("Ann", "mass | Ann | 12"))) == 1  # only afterwards
    wordy = "Please look up and tell me what is known about the mass of Ann"
    asked = agent(wordy, "mass | Ann | 12", turn=1)
    assert count(asked, turns=(read("Ann", "mass | Ann | 12"), launch), answer="Answer: 12") == 0
    assert count(asked, turns=(read("Bob", "mass | Bob | 12"), launch), answer="Answer: 12") == 1
    judge = agent("which is heavier, Ann or Bob", "is the second", tools=0, turn=1)  # of a page about all
    assert count(judge, turns=(read("Ann", "first is the second"), launch), answer="Answer: second") == 1
    beside = read("Ann", "mass | Ann | 12")
    assert count(agent("mass of Ann", "mass | Ann | 12"), turns=(beside,)) == 0  # in the same turn


def test_openparls_rule_wants_a_result_and_a_tool():
    some = episode(
        agent("a", "x"), agent("", "x"), agent("a", "x", tools=0), agent("b", "y", status=TraceStatus.OVER_BUDGET)
    )
    assert counts(some, "tool") == (4, 2)
    assert counts(some, "any") == (4, 3)
    assert counts(episode(), "news") == counts(episode(), "tool") == (0, 0)


def test_words_are_runs_of_letters_and_digits_in_any_case():
    assert words("Größe, of_it: 12,5 — ÉTÉ") == ["grösse", "of_it", "12", "5", "été"]


@pytest.mark.parametrize(("width", "found"), [(0, 0), (2, 2), (None, 2)])
def test_by_the_rule_needed_none_counts_where_sub_agents_do_not_pay(width: int | None, found: int):
    one = episode(agent("mass of Ann", "mass | Ann | 12"), agent("mass of Bob", "mass | Bob | 14"))
    oracle = None if width is None else Oracle(serial_steps=5, parallel_steps=5, width=width)
    one.task = replace(one.task, oracle=oracle)
    assert counts(one, "needed") == (found, found) and counts(one, "news") == (2, 2)
