"""Scores by a function, a judge and a command, and what is said where they cannot be had."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from stored import make_episode, wide_task

from envs.base import Gold, Role, Score, Task
from rewards.outcome import judge as module
from rewards.outcome.command import by_command
from rewards.outcome.judge import Judge, account, verdict
from rewards.outcome.sections import CommandSection, JudgeSection
from rewards.parl_reward import Parl
from rewards.scoring import Scoring, check_scoring
from rollouts.engine.chat.client import ChatServer, ServerGone
from rollouts.episode import Episode, EpisodeStatus, Trace
from rollouts.faults import Unscored

HERE = "test_scoring_kinds"


class Plain:
    """A session that scores nothing."""


class Scores:
    async def score(self, episode: Episode) -> Score:
        return Score(value=0.75)


def episode_of(gold: Gold, answer: str = "Paris", **more: Any) -> Episode:
    task = Task(key="k", family="user", split="train", prompt="Capital of France?", gold=gold)
    root = Trace(agent_id="0", role=Role.ORCHESTRATOR)
    given = {"status": EpisodeStatus.ANSWERED, **more}
    return Episode(task=task, index=0, seed=0, traces=[root], answer=answer, **given)


# ---------------------------------------------------------------- functions of a user


def number(episode):
    return len(episode.answer) / 10


async def later(episode):
    await asyncio.sleep(0)
    return {"score": 0.5, "style": 1, "success": True}


def whole(episode) -> Score:
    return Score(value=-1.0, low=-1.0, high=1.0)


def words(episode):
    return "good"


def nameless(episode):
    return {"style": 1.0}


def odd(episode):
    return float("nan")


def two(episode, other):
    return 1.0


async def scored(name: str, session: Any = None, gold: Gold | None = None, folder: Path = Path("none"), **reward: Any):
    scoring = Scoring(Parl(function=f"{HERE}:{name}", **reward), folder)
    return await scoring(session or Plain(), episode_of(gold or Gold(kind="function")))


async def test_a_function_returns_a_number_named_parts_or_a_score():
    assert await scored("number") == Score(value=0.5)
    assert await scored("later") == Score(value=0.5, success=True, parts={"style": 1.0})
    assert await scored("whole") == Score(value=-1.0, low=-1.0, high=1.0)
    assert await scored("number", range=(-2.0, 2.0)) == Score(value=0.5, low=-2.0, high=2.0)


@pytest.mark.parametrize(("name", "said"), [("words", "returned 'good'"), ("nameless", "style"), ("odd", "finite")])
async def test_what_is_no_score_is_named(name: str, said: str):
    with pytest.raises(ValueError, match=said):
        await scored(name)


async def test_who_scores_depends_on_the_kind_of_gold():
    assert await scored("number", Scores(), Gold(kind="none")) == Score(value=0.75)
    assert await scored("number", Plain(), Gold(kind="none")) == Score(value=0.5)
    assert await scored("number", Scores(), Gold(kind="function")) == Score(value=0.5)
    assert await scored("number", Plain(), Gold(kind="exact", answers=("Paris",))) is None  # from its answer, any time


@pytest.mark.parametrize("status", [EpisodeStatus.OVER_BUDGET, EpisodeStatus.MALFORMED])
async def test_an_episode_without_an_answer_has_the_lowest_score(status: EpisodeStatus):
    scoring = Scoring(Parl(function=f"{HERE}:number", range=(-3.0, 1.0)), Path("none"))
    score = await scoring(Plain(), episode_of(Gold(kind="function"), status=status))  # type: ignore[arg-type]
    assert score == Score(value=-3.0, success=False, low=-3.0, high=1.0)


@pytest.mark.parametrize(
    ("reward", "gold", "said"),
    [
        ({"function": f"{HERE}:gone"}, Gold(kind="function"), "has no gone"),
        ({"function": f"{HERE}:two"}, Gold(kind="function"), "must take the episode alone"),
        ({"function": f"{HERE}:HERE"}, Gold(kind="function"), "is str, not a function"),
        ({"function": f"{HERE}:number"}, Gold(kind="exact", answers=("a",)), "would score nothing"),
        ({}, Gold(kind="function"), "needs rewards.function"),
        ({}, Gold(kind="judge", answers=("a",)), "needs rewards.judge"),
        ({}, Gold(kind="command"), "gold.command is missing"),
    ],
)
def test_tasks_that_cannot_be_scored_are_refused_before_a_run(reward: dict[str, Any], gold: Gold, said: str):
    with pytest.raises(ValueError, match=said):
        check_scoring(Parl(**reward), [episode_of(gold).task])


def test_tasks_that_can_be_scored_pass():
    judge = JudgeSection(url="http://127.0.0.1:1", model="m")
    golds = [Gold(kind="judge", answers=("a",)), Gold(kind="none"), Gold(kind="command", command=("true",))]
    check_scoring(Parl(judge=judge, function=f"{HERE}:number"), [episode_of(gold).task for gold in golds])
    check_scoring(Parl(), [make_episode(wide_task(1), spawning=True).task])


def test_the_range_must_rise():
    with pytest.raises(ValueError, match="lowest and the highest"):
        Parl(range=(1.0, 1.0))


# ---------------------------------------------------------------- judge


class Server:
    """A judge's server with a list of replies; an int is a status."""

    def __init__(self, *replies: Any) -> None:
        self.replies, self.asked = list(replies), []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, int):
            return httpx.Response(reply, json={"error": {"message": "no"}})
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return httpx.Response(200, json={"choices": [{"message": {"content": reply}}], "usage": usage})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    def start(*replies: Any) -> Server:
        server = Server(*replies)
        made = partial(ChatServer, transport=httpx.MockTransport(server), pause_s=0.001)
        monkeypatch.setattr(module, "ChatServer", made)
        return server

    return start


SECTION = JudgeSection(url="http://127.0.0.1:9", model="m", price_in=1.0, price_out=10.0)
GOLD = Gold(kind="judge", answers=("Paris", "Lutetia"))


async def judged(folder: Path, section: JudgeSection = SECTION, answer: str = "It is {gold}.") -> Score:
    return await Judge(section, folder).score(episode_of(GOLD, answer), -1.0, 1.0)


async def test_a_judge_is_asked_once_for_an_answer_and_its_verdict_is_kept(serve: Any, tmp_path: Path):
    server = serve("The same.\ncorrect: yes")
    episode, judge = episode_of(GOLD), Judge(SECTION, tmp_path)
    found = await asyncio.gather(*(judge.score(episode, 0.0, 1.0) for _ in range(8)))
    assert set(map(repr, found)) == {repr(found[0])} and found[0].value == 1.0 and len(server.asked) == 1
    assert (await Judge(SECTION, tmp_path).score(episode, 0.0, 1.0)).value == 1.0 and len(server.asked) == 1
    assert (await judged(tmp_path, answer="Rome")).value == 1.0 and len(server.asked) == 2
    await judged(tmp_path, JudgeSection(url=SECTION.url, model="m", temperature=0.5), answer="Rome")
    assert len(server.asked) == 3
    sums = account(tmp_path, SECTION)
    assert (sums.requests, sums.prompt_tokens, sums.completion_tokens, sums.unreadable) == (3, 300, 30, 0)
    assert sums.cost == pytest.approx(300 / 1e6 + 300 / 1e6) and "3 requests" in str(sums)


async def test_the_judge_reads_question_gold_and_answer_as_they_are(serve: Any, tmp_path: Path):
    server = serve("correct: no")
    assert (await judged(tmp_path)).value == -1.0
    [asked] = server.asked
    text = asked["messages"][0]["content"]
    assert "Capital of France?" in text and "Paris or Lutetia" in text and "It is {gold}." in text
    [kept] = tmp_path.glob("*.json")
    record = json.loads(kept.read_text())
    assert record["prompt"] == text and record["reply"] == "correct: no" and record["value"] == -1.0


async def test_unreadable_replies_are_counted_apart_and_never_a_score(serve: Any, tmp_path: Path):
    serve("hm", "correct: maybe", "score: 7", "correct: yes")
    score = await judged(tmp_path)
    assert score.value == 1.0 and score.parts == {"judge_unreadable": 3}
    assert account(tmp_path, SECTION).unreadable == 3
    serve("I would rather not say.")
    with pytest.raises(Unscored, match="rather not"):
        await judged(tmp_path, answer="other")
    assert account(tmp_path, SECTION).unreadable == 3 + SECTION.tries
    assert len(list(tmp_path.glob("*.json"))) == 1


async def test_a_busy_judge_is_asked_again_and_one_that_refuses_is_an_error(serve: Any, tmp_path: Path):
    server = serve(429, 503, "score: 0.25")
    assert (await judged(tmp_path)).value == 0.25 and len(server.asked) == 3
    serve(401)
    with pytest.raises(ServerGone):
        await judged(tmp_path, answer="other")


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("correct: yes", 1.0),
        ("**Correct:** No", -1.0),
        ("The answer says `correct: yes`.\n\ncorrect: no", -1.0),
        ("score: -0.5", -0.5),
        ("Score = 1", 1.0),
        ("score: 2", None),
        ("correct: 1", None),
        ("it is correct: yes, surely", None),
        ("", None),
    ],
)
def test_the_last_line_of_a_reply_is_the_verdict(reply: str, value: float | None):
    assert verdict(reply, -1.0, 1.0) == value


def test_a_prompt_without_the_answer_is_refused(tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_text("Is {question} right?")
    with pytest.raises(ValueError, match=r"\{answer\}"):
        JudgeSection(url="http://127.0.0.1:9", model="m", prompt=path)


def test_a_key_in_the_judges_address_is_refused():
    with pytest.raises(ValueError, match="api_key_env"):
        JudgeSection(url="https://me:secret@host/v1", model="m")


# ---------------------------------------------------------------- command


CHECK = """
import json, pathlib
task = json.loads(pathlib.Path("task.json").read_text())
answer = pathlib.Path("answer.txt").read_text()
"""


async def ran(code: str, answer: str = "Paris", **section: Any) -> Score:
    data = {"files": {"check.py": CHECK + code}, "n": 3}
    gold = Gold(kind="command", command=("python", "check.py"), data=data)
    return await by_command(CommandSection(**section), episode_of(gold, answer), -1.0, 1.0)


async def test_a_command_scores_by_its_exit_code_or_its_reward_file():
    assert (await ran("assert answer == 'Paris' and task['data']['n'] == 3")).value == 1.0
    assert (await ran("raise SystemExit(3)")).value == -1.0
    assert (await ran("open('reward.txt', 'w').write('0.25'); raise SystemExit(1)")).value == 0.25
    score = await ran("""open('reward.txt', 'w').write('{"score": 0.5, "tests": 4}')""")
    assert (score.value, score.parts) == (0.5, {"tests": 4.0})


async def test_a_command_that_does_not_end_is_the_lowest_score_and_one_that_is_not_there_an_error():
    score = await ran("while True: pass", deadline_s=1.0)
    assert (score.value, score.success, score.parts) == (-1.0, False, {"stopped": 1.0})
    gold = Gold(kind="command", command=("no-such-program",))
    with pytest.raises(ValueError, match="cannot be run"):
        await by_command(CommandSection(), episode_of(gold), 0.0, 1.0)


@pytest.mark.parametrize("code", [126, 127])
async def test_an_answer_that_ends_as_an_absent_program_would_is_the_lowest_score_and_no_fault_of_the_machine(
    code: int,
):
    answer = "nosuchthing" if code == 127 else "/"
    gold = Gold(kind="command", command=("bash", "answer.txt"))
    score = await by_command(CommandSection(), episode_of(gold, answer), 0.0, 1.0)
    assert (score.value, score.parts) == (0.0, {})
    score = await by_command(CommandSection(), episode_of(gold, f"echo bash: none >&2; exit {code}"), 0.0, 1.0)
    assert (score.value, score.parts) == (0.0, {})


@pytest.mark.parametrize(
    "wrote",
    ["good", "", "7", "NaN", "1" + "0" * 400, '{"style": 1}', '{"score": 0, "style": "x"}', "[" * 100_000, "\xff"],
)
async def test_a_reward_file_that_is_no_score_is_the_lowest_one_and_counted_as_unreadable(wrote: str):
    score = await ran(f"open('reward.txt', 'w', encoding='latin-1').write({wrote!r})")
    assert (score.value, score.success, score.parts) == (-1.0, False, {"unreadable": 1.0})


async def test_with_exit_an_answer_that_is_executed_cannot_write_its_own_reward():
    check = "import subprocess\nassert subprocess.check_output(['bash', 'answer.txt']) == b'42\\n'"
    assert (await ran(check, "echo 1 > reward.txt; exit 0", reads="exit")).value == -1.0
    assert (await ran(check, "echo 1 > reward.txt; echo 42", reads="exit")).value == 1.0
    assert (await ran(check, "echo 1 > reward.txt; exit 0")).value == 1.0  # what it is for
