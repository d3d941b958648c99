"""The report opens from disk, shows what the run holds, and trusts none of its text."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from envs.base import Gold, Oracle, Role, Task, ToolCall, ToolResult
from parl.errors import UserError
from parl.report import episode_to_timeline, write_report, write_timelines
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn

EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted"'


def make_trace(agent_id: str, turns: list[Turn], **fields: Any) -> Trace:
    root = agent_id == "0"
    return Trace(
        agent_id=agent_id,
        role=Role.ORCHESTRATOR if root else Role.SUBAGENT,
        parent=None if root else "0",
        status=TraceStatus.FINISHED,
        turns=turns,
        **fields,
    )


def make_turn(t: float, model: float, end: float, name: str = "search", spawned: list[str] | None = None) -> Turn:
    calls = [ToolCall(id="functions.x:0", name=name, arguments={"query": "capital of Osmania"})] if name else []
    results = [ToolResult(text="Osmania: capital Tarvo; population 81 000.")] if name else []
    turn = Turn(start=0, end=23, content="Look it up.", calls=calls, results=results, spawned=spawned or [])
    turn.t_start, turn.t_model, turn.t_end = t, model, end
    return turn


def swarm_episode(width: int = 12, seed: int = 0) -> Episode:
    """A wide task: ``width`` sub-agents of two to four steps, then a second wave of one, then the answer."""
    rng = random.Random(seed)
    subagents, ends, now = [], [], 0.9
    for index in range(width):
        t = now + 0.02 * index
        turns = []
        for k in range(rng.choice([2, 2, 3, 3, 4])):
            model = t + rng.uniform(0.2, 0.5)
            end = model + rng.uniform(0.05, 0.3)
            turns.append(make_turn(t, model, end, "search" if k == 0 else "open_page"))
            t = end
        turns[-1].calls, turns[-1].results, turns[-1].content = [], [], "Tarvo"
        ends.append(t)
        subagents.append(make_trace(f"0/{index}", turns, name=f"country {index + 1}", message="Tarvo", parent_turn=1))
    join = max(ends)
    last = make_trace(
        f"0/{width}",
        [make_turn(join + 1.1, join + 1.5, join + 1.8), make_turn(join + 1.8, join + 2.1, join + 2.1, "")],
        name="check",
        message="ok",
        parent_turn=2,
    )
    root = make_trace(
        "0",
        [
            make_turn(0.0, 0.4, 0.5, "create_subagent"),
            make_turn(0.5, 0.9, join, "assign_task", [f"0/{i}" for i in range(width)]),
            make_turn(join, join + 1.1, join + 2.1, "assign_task", [f"0/{width}"]),
            make_turn(join + 2.1, join + 3.0, join + 3.0, ""),
        ],
    )
    task = Task(
        key="wide-1",
        family="wide",
        split="test",
        width=width,
        gold=Gold(kind="table"),
        prompt=f"For each of the {width} countries of the Osman league, give its capital as a table.",
        oracle=Oracle(serial_steps=2 * width + 1, parallel_steps=4, width=width),
    )
    traces = [root, *subagents, last]
    rewards = {"perf": 0.96, "parallel": 0.8, "finish": 1.0, "total": 0.9}
    return Episode(
        task=task, index=0, seed=1, traces=traces, status=EpisodeStatus.ANSWERED, answer="| a | b |", rewards=rewards
    )


def serial_episode() -> Episode:
    root = make_trace(
        "0", [make_turn(0.7 * i, 0.7 * i + 0.5, 0.7 * i + 0.7, "search" if i < 5 else "") for i in range(6)]
    )
    task = Task(key="chain-1", family="chain", split="test", prompt=f"Who? {EVIL}", gold=Gold(kind="exact"))
    return Episode(task=task, index=0, seed=1, traces=[root], status=EpisodeStatus.ANSWERED, answer="Tarvo")


def _metrics(steps: int, single: bool) -> list[dict[str, Any]]:
    rng = random.Random(int(single))
    rows = []
    for step in range(1, steps + 1):
        done = 1 / (1 + math.exp(-(step - steps * 0.35) / 4))
        noise = rng.uniform(-0.03, 0.03)
        critical = (24 - 3 * done if single else 24 - 15 * done) + 40 * noise
        row = {"step": step, "kind": "train", "reward/total": 0.35 + (0.3 if single else 0.5) * done + noise}
        row |= {
            "reward/perf": 0.55 + 0.38 * done + noise,
            "steps/critical": critical,
            "speed/tokens_per_s": 3900 + 9000 * noise,
        }
        if not single:
            weight = max(0.0, 1 - step / (steps / 2))
            row |= {
                "reward/parallel": 0.1 + 0.4 * done,
                "reward/finish": 0.5 + 0.45 * done,
                "reward/critical": critical / 30,
            }
            row |= {
                "lambda/parallel": 0.3 * weight,
                "lambda/finish": 0.1 * weight,
                "swarm/subagents": 0.6 + 4.2 * done + 8 * noise,
            }
            for family, rate in {"wide": 0.98, "list": 0.9, "swap": 0.5, "chain": 0.02, "single_fact": 0.01}.items():
                bump = 0.25 * math.exp(-(((step - steps * 0.25) / 5) ** 2)) if rate < 0.1 else 0
                row[f"swarm/spawn_rate/{family}"] = min(1, max(0, 0.25 * (1 - done) + rate * done + bump + noise))
                row[f"perf/item_f1/{family}"] = min(1, 0.5 + 0.4 * done + 0.06 * rate + rng.uniform(-0.03, 0.03))
        rows.append(row)
    return rows


def _summary() -> dict[str, Any]:
    def group(f1: float, critical: float, subagents: float, spawn: float, n: int) -> dict[str, float]:
        return {
            "item_f1": f1, "success": f1 - 0.1, "critical_steps": critical, "total_steps": critical + subagents * 2.4,
            "subagents": subagents, "spawn_rate": spawn, "finish_rate": 0.98 if subagents else 0.0, "n_tasks": n,
        }  # fmt: skip

    names = ("wide", "wide_12", "chain", "single_fact", "all")
    values = {
        "cold_start": "0.71 15.2 2.1 .31 64, 0.62 24.6 3.0 .3 24, 0.8 6.4 .3 .15 32, 0.9 3.4 .2 .14 24, .8 9 1 .2 160",
        "trained": "0.957 5.4 8.4 1 64, 0.949 5.9 13.7 1 24, 0.94 5.3 .02 .02 32, 0.99 3 0 0 24, 0.955 4.9 4.1 .5 160",
        "single_agent": "0.931 19.8 0 0 64, 0.902 31.7 0 0 24, 0.95 5.2 0 0 32, 0.99 3.0 0 0 24, 0.945 11.0 0 0 160",
    }
    policies = {
        policy: {name: group(*map(float, row.split())) for name, row in zip(names, rows.split(", "), strict=True)}
        for policy, rows in values.items()
    }
    return policies | {"wall_s": 1620.0, "peak_rss_gib": 3.4, "seed": 1, "version": "0.1.0"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "quickstart")


def make_run(folder: Path) -> Path:
    """A run folder with realistic numbers."""
    (folder / "single_agent").mkdir(parents=True)
    for name, single in (("metrics.jsonl", False), ("single_agent/metrics.jsonl", True)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in _metrics(40, single)))
    (folder / "summary.json").write_text(json.dumps(_summary()))
    write_timelines(folder, [swarm_episode(), serial_episode()])
    return folder


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data


def _page(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text())
    return page


def test_page_holds_verdict_curves_and_timelines(run_dir: Path, tmp_path: Path) -> None:
    page = _page(write_report(run_dir, tmp_path / "out" / "report.html"))
    for part in (
        "quickstart",
        "5.4×",
        "31.7",
        "5.9",
        "cold start",
        "trained swarm",
        "single agent",
        "27.0 min",
        "0.957",
    ):
        assert part in page.text
    data = json.loads(page.scripts[0])
    titles = [chart["title"] for chart in data["charts"]]
    for title in ("Reward", "Critical steps per episode", "Spawn rate by task family", "Annealed weights λ"):
        assert title in titles
    reward = data["charts"][0]["series"]
    assert [(s["name"], len(s["points"])) for s in reward] == [("trained", 40), ("single agent", 40)]
    assert data["charts"][0]["zero_lambda"] == 20
    assert [t["family"] for t in data["timelines"]] == ["wide", "chain"]


def test_page_asks_the_network_for_nothing_and_escapes_untrusted_text(run_dir: Path, tmp_path: Path) -> None:
    evil = run_dir.rename(tmp_path / "a<b>&c")
    out = write_report(evil, tmp_path / "report.html")
    page, html = _page(out), out.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert [tag for tag, _ in page.tags if tag in ("img", "iframe", "b>")] == []
    assert all(not attrs.get("src") for _, attrs in page.tags)
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3
    assert "innerHTML" not in html
    assert EVIL in json.loads(page.scripts[0])["timelines"][1]["prompt"]
    assert "a<b>&c" in page.text


def test_timeline_columns_are_the_critical_steps() -> None:
    episode = swarm_episode()
    timeline = episode_to_timeline(episode)
    columns = [turn["column"] for agent in timeline["agents"] for turn in agent["turns"]]
    assert max(columns) + 1 == timeline["critical_steps"] == critical_steps(episode)
    on_path = sorted(turn["column"] for agent in timeline["agents"] for turn in agent["turns"] if turn["critical"])
    assert on_path == list(range(critical_steps(episode)))  # one turn in each column: the path is whole
    assert timeline["agents"][1]["turns"][0]["column"] == 2
    assert timeline["oracle"] == {"serial": 25, "parallel": 4}
    json.dumps(timeline, allow_nan=False)


def test_timeline_of_a_nested_and_unfinished_swarm() -> None:
    deep = make_trace("0/0/0", [make_turn(1, 2, 3), make_turn(3, 4, 4)])
    middle = make_trace("0/0", [make_turn(1, 1, 4, "assign_task", ["0/0/0"])])
    idle = make_trace("0/1", [])
    root = make_trace("0", [make_turn(0, 1, 4, "assign_task", ["0/0", "0/1"])])
    episode = serial_episode()
    episode.traces = [root, middle, deep, idle]
    columns = {a["id"]: [t["column"] for t in a["turns"]] for a in episode_to_timeline(episode)["agents"]}
    assert columns == {"0": [0], "0/0": [1], "0/0/0": [2, 3], "0/1": []}


def test_missing_pieces_are_noted_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    page = _page(write_report(tmp_path / "bare", tmp_path / "report.html"))
    for part in ("summary.json", "metrics.jsonl", "timelines.json"):
        assert part in page.text
    (tmp_path / "bare" / "metrics.jsonl").write_text(
        '{"step": 1, "kind": "train", "reward/total": 0.5, "x": null}\n{"st'
    )
    (tmp_path / "bare" / "summary.json").write_text('{"trained": {"wide": {"item_f1": 0.5}}}')
    page = _page(write_report(tmp_path / "bare", tmp_path / "report.html"))
    assert "0.500" in page.text and "single_agent/metrics.jsonl" in page.text


def test_no_run_or_a_damaged_one_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "none", tmp_path / "report.html")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        write_report(tmp_path, tmp_path / "report.html")
