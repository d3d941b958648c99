"""The report opens from disk, shows the run's content, and escapes all text."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from envs.base import Gold, Oracle, Role, Task, ToolCall, ToolResult
from envs.world.tasks import GROUPS
from model.tokenizer.bpe import train_tokenizer
from model.tokenizer.tokenizer import Tokenizer
from parl.cli.main import app
from parl.episodes.groups import kept_groups
from parl.episodes.stores import final_stores
from parl.errors import UserError
from parl.report import episode_to_timeline, write_report
from parl.report.pack import pack
from rollouts.critical_path import critical_path, critical_steps, makespan
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.store.store import EpisodeStore

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
    count = len(spawned or [0]) if name else 0
    calls = [
        ToolCall(id=f"functions.x:{i}", name=name, arguments={} if spawned else {"query": "capital of Osmania"})
        for i in range(count)
    ]
    results = [ToolResult(text="Osmania: capital Tarvo; population 81 000.") for _ in calls]
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
    for turn in root.turns:
        for call, agent_id in zip(turn.calls, turn.spawned, strict=False):
            call.arguments.update(agent=next(t.name for t in traces if t.agent_id == agent_id), prompt="")
    rewards = {"perf": 0.96, "parallel": 0.8, "finish": 1.0, "total": 0.9}
    episode = Episode(
        task=task, index=0, seed=1, traces=traces, status=EpisodeStatus.ANSWERED, answer="| a | b |", rewards=rewards
    )
    episode.metrics = {"critical_steps": critical_steps(episode), "subagents": width + 1}
    return episode


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
    groups = kept_groups(GROUPS)
    return policies | {"groups": groups, "wall_s": 1620.0, "peak_rss_gib": 3.4, "seed": 1, "version": "0.1.0"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "quickstart")


def make_run(folder: Path) -> Path:
    """A run folder with realistic numbers."""
    (folder / "single_agent").mkdir(parents=True)
    for name, single in (("metrics.jsonl", False), ("single_agent/metrics.jsonl", True)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in _metrics(40, single)))
    (folder / "summary.json").write_text(json.dumps(_summary()))
    EpisodeStore(folder / "eval").write(0, [serial_episode(), swarm_episode()], policy_version=0, kind="trained")
    return folder


def unpack(packed: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """(JSON part, positions in ``vocab``, log-probs in thousandths) of a packed episode."""
    content = gzip.decompress(base64.b64decode(packed))
    length = int(np.frombuffer(content[:4], "<u4")[0])
    data = json.loads(content[4 : 4 + length])
    places = np.frombuffer(content, "<u4", data["n_tokens"], 4 + length)
    return data, places, np.frombuffer(content, "<u2", data["n_tokens"], 4 + length + 4 * data["n_tokens"])


def episodes_of(page: _Page) -> list[dict[str, Any]]:
    """The page's episodes: headings merged with unpacked parts."""
    headings = json.loads(page.scripts["data"])["episodes"]
    return [{**heading, **unpack(page.scripts[f"episode-{i}"])[0]} for i, heading in enumerate(headings)]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}  # those with an id
        self.text = ""
        self._inside, self._id = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside, self._id = tag, dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            if self._id:
                self.scripts[self._id] = self.scripts.get(self._id, "") + data
        elif self._inside != "style":
            self.text += data


def _page(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text())
    return page


def test_page_holds_verdict_curves_and_episodes(run_dir: Path, tmp_path: Path) -> None:
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
    data = json.loads(page.scripts["data"])
    titles = [chart["title"] for chart in data["charts"]]
    for title in ("Reward", "Critical steps per episode", "Spawn rate by task family", "Annealed weights λ"):
        assert title in titles
    reward = data["charts"][0]["series"]
    assert [(s["name"], len(s["points"])) for s in reward] == [("trained", 40), ("single agent", 40)]
    assert data["charts"][0]["zero_lambda"] == 20
    shown = episodes_of(page)
    assert [(e["id"], e["family"]) for e in shown] == [("trained-000000:1", "wide"), ("trained-000000:0", "chain")]
    assert shown[0]["agents"][1]["turns"][0]["results"][0]["text"] == "Osmania: capital Tarvo; population 81 000."


def test_the_evaluation_of_a_runs_end_is_found_where_its_summary_says(run_dir: Path, tmp_path: Path):
    assert final_stores(run_dir) == {"trained": run_dir / "eval"}  # as an earlier version left it
    store = run_dir / "evals" / "trained-1a2b"
    late, good = dataclasses.replace(serial_episode(), status=EpisodeStatus.FAILED), serial_episode()
    for step, episode in enumerate((late, good, swarm_episode())):
        EpisodeStore(store).write(step, [episode], policy_version=0, kind="trained")
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"stores": {"trained": "evals/trained-1a2b"}}))
    assert final_stores(run_dir) == {"trained": store}
    shown = episodes_of(_page(write_report(run_dir, tmp_path / "r.html")))
    assert {e["id"] for e in shown} == {"trained-000001:0", "trained-000002:0"}  # the attempt that failed was repeated
    (run_dir / "summary.json").write_text('{"stores": 3}')
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        final_stores(run_dir)


def test_page_asks_the_network_for_nothing_and_escapes_untrusted_text(run_dir: Path, tmp_path: Path) -> None:
    evil = run_dir.rename(tmp_path / "a<b>&c")
    episode = serial_episode()
    episode.task = dataclasses.replace(episode.task, key=f"key{EVIL}", family=EVIL)
    EpisodeStore(evil / "eval").write(0, [episode], policy_version=0, kind="trained")
    out = write_report(evil, tmp_path / "report.html")
    page, html = _page(out), out.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert [tag for tag, _ in page.tags if tag in ("img", "iframe", "b>")] == []
    assert all(not attrs.get("src") for _, attrs in page.tags)
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    assert "default-src 'none'" in html
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "alert(1)</",
    ):
        assert forbidden not in html
    (shown,) = episodes_of(page)
    assert EVIL in shown["prompt"] and shown["family"] == EVIL
    assert "a<b>&c" in page.text


def test_columns_are_the_critical_steps_and_marks_are_the_critical_paths() -> None:
    episode = swarm_episode()
    timeline = episode_to_timeline(episode)
    turns = [turn for agent in timeline["agents"] for turn in agent["turns"]]
    assert max(turn["column"] for turn in turns) + 1 == timeline["critical_steps"] == critical_steps(episode)
    on_path = sorted(turn["column"] for turn in turns if turn["critical"][0])
    assert on_path == list(range(critical_steps(episode)))  # one turn in each column: the path is whole
    for kind, seconds in ((0, False), (1, True)):
        marked = {(a["id"], k) for a in timeline["agents"] for k, t in enumerate(a["turns"]) if t["critical"][kind]}
        assert marked == set(critical_path(episode, seconds=seconds))
    assert sum(stage["steps"] for stage in timeline["stages"]) == critical_steps(episode)
    assert timeline["makespan"] == pytest.approx(makespan(episode), abs=1e-4)
    assert timeline["agents"][1]["turns"][0]["column"] == 2
    assert timeline["oracle"] == {"serial": 25, "parallel": 4}
    json.dumps(timeline, allow_nan=False)


def test_edges_are_the_spawns_and_joins_of_the_episode() -> None:
    episode = swarm_episode(width=5)
    timeline = episode_to_timeline(episode)
    ids = [agent["id"] for agent in timeline["agents"]]
    spawns = {(ids[parent], turn, ids[child]) for parent, turn, child in timeline["spawns"]}
    assert spawns == {(t.parent, t.parent_turn, t.agent_id) for t in episode.subagents}
    assert {(p, k, c) for p, k, c in timeline["joins"]} == {(p, k + 1, c) for p, k, c in timeline["spawns"]}
    wave = timeline["agents"][0]["turns"][1]
    assert [call["child"] for call in wave["calls"]] == wave["spawned"] == [1, 2, 3, 4, 5]
    stage = timeline["stages"][1]
    steps = [trace.steps for trace in episode.subagents[:5]]
    assert (stage["steps"], stage["longest"], stage["median"]) == (1 + max(steps), 1 + steps.index(max(steps)), 3)


def test_a_call_that_launched_nobody_leads_to_nobody() -> None:
    episode = swarm_episode(width=2)
    wave = episode.orchestrator.turns[1]
    wave.calls.insert(1, ToolCall(id="functions.x:9", name="assign_task", arguments={"agent": "nobody", "prompt": "p"}))
    wave.results.insert(1, ToolResult(text="error: no such agent"))
    calls = episode_to_timeline(episode)["agents"][0]["turns"][1]["calls"]
    assert [call["child"] for call in calls] == [1, None, 2]


def test_timeline_of_a_nested_and_unfinished_swarm() -> None:
    deep = make_trace("0/0/0", [make_turn(1, 2, 3), make_turn(3, 4, 4)])
    deep.parent = "0/0"
    middle = make_trace("0/0", [make_turn(1, 1, 4, "assign_task", ["0/0/0"])])
    idle = make_trace("0/1", [])
    root = make_trace("0", [make_turn(0, 1, 4, "assign_task", ["0/0", "0/1"])])
    episode = serial_episode()
    episode.traces = [root, middle, deep, idle]
    timeline = episode_to_timeline(episode)
    assert {a["id"]: [t["column"] for t in a["turns"]] for a in timeline["agents"]} == {
        "0": [0],
        "0/0": [1],
        "0/0/0": [2, 3],
        "0/1": [],
    }
    assert timeline["spawns"] == [[0, 0, 1], [0, 0, 3], [1, 0, 2]]


def test_an_episode_without_a_turn_is_shown() -> None:
    episode = serial_episode()
    episode.traces = [make_trace("0", [])]
    episode.status, episode.error = EpisodeStatus.FAILED, "boom"
    timeline = episode_to_timeline(episode)
    assert timeline["stages"] == [] and timeline["critical_steps"] == 0 and timeline["error"] == "boom"


def test_text_that_no_encoding_can_carry_does_not_stop_the_page() -> None:
    episode = swarm_episode(width=1)
    episode.traces[1].name = "odd \ud800"
    episode.orchestrator.turns[0].calls[0].arguments["query"] = "\ud800"
    packed, _ = pack(episode, None) or pytest.fail("too large")
    agents = unpack(packed)[0]["agents"]
    assert agents[1]["name"] == "odd ?" and agents[0]["turns"][0]["calls"][0]["arguments"] == '{"query": "?"}'


def speaking_episode(tokenizer: Tokenizer, width: int = 12) -> Episode:
    """:func:`swarm_episode` with the tokens of its turns' texts, with distinct log-probs."""
    episode, rng = swarm_episode(width), random.Random(1)
    for trace in episode.traces:
        trace.tokens = tokenizer.encode("what the agent reads")
        trace.mask, trace.logprobs = [False] * len(trace.tokens), [0.0] * len(trace.tokens)
        trace.versions = [-1] * len(trace.tokens)
        for turn in trace.turns:
            ids = tokenizer.encode(" ".join([turn.content, *(call.name for call in turn.calls)]))
            turn.start, turn.end = len(trace.tokens), len(trace.tokens) + len(ids)
            trace.tokens += ids
            trace.mask += [True] * len(ids)
            trace.logprobs += [-rng.expovariate(1) for _ in ids]
            trace.versions += [7] * len(ids)
    return episode


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["look up the capital of Osmania", "assign_task"], 600, atoms=["Tar", "vo"])


def test_every_sampled_token_is_in_the_page_with_its_logprob(tokenizer: Tokenizer) -> None:
    episode = speaking_episode(tokenizer)
    episode.traces[3].logprobs[-1] = -math.inf
    packed, note = pack(episode, tokenizer) or pytest.fail("too large")
    data, places, costs = unpack(packed)
    assert note == ""
    for trace, agent in zip(episode.traces, data["agents"], strict=True):
        for turn, shown in zip(trace.turns, agent["turns"], strict=True):
            span = slice(shown["first"], shown["first"] + shown["held"])
            vocab = [data["vocab"][place] for place in places[span]]
            assert [index for index, _ in vocab] == trace.tokens[turn.start : turn.end]
            assert "".join(text for _, text in vocab) == tokenizer.decode(trace.tokens[turn.start : turn.end])
            stored = np.minimum(-np.asarray(trace.logprobs[turn.start : turn.end]), 65.535)
            np.testing.assert_allclose(costs[span] / 1000, stored, atol=5e-4 + 1e-9)
            assert shown["version"] == 7


def test_a_store_finds_its_tokenizer_and_takes_no_other(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "run" / "episodes")
    store.write(3, [speaking_episode(tokenizer)], policy_version=3)
    train_tokenizer(["quite another vocabulary"], 600, atoms=["Ka", "ro"]).save(tmp_path / "run" / "policy")
    first = _page(write_report(store.folder, tmp_path / "a.html"))
    assert "No tokenizer.json that fits" in first.text
    assert {text for _, text in episodes_of(first)[0]["vocab"]} == {""}
    tokenizer.save(tmp_path / "run" / "policy")
    second = _page(write_report(store.path(3), tmp_path / "b.html"))
    assert "No tokenizer.json" not in second.text
    (shown,) = episodes_of(second)
    assert (shown["id"], shown["group"]) == ("train-000003:0", "training, step 3")
    assert {"Tar", "vo"} <= {text for _, text in shown["vocab"]}


def test_a_page_that_would_be_too_large_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 200_000
    monkeypatch.setattr("parl.report.episodes.LIMIT", limit)
    rng = random.Random(0)
    store = EpisodeStore(tmp_path)
    episodes = [dataclasses.replace(swarm_episode(8, index), index=index) for index in range(12)]
    for trace in (trace for episode in episodes for trace in episode.traces):
        for turn in trace.turns:
            turn.content = rng.randbytes(2500).hex()  # nothing to compress but the hexadecimal form
    store.write(0, episodes, policy_version=0, kind="eval")
    page = _page(write_report(tmp_path, tmp_path / "report.html"))
    assert sum(len(script) for name, script in page.scripts.items() if name.startswith("episode-")) <= limit
    notes = [episode["note"] for episode in episodes_of(page)]
    assert "texts cut to 4000 characters" in notes[0] and "no tokens" in notes[-1]
    assert "episodes did not fit the page" in page.text
    text = episodes_of(page)[0]["agents"][0]["turns"][0]["text"]
    assert text.endswith("(1,000 more characters in the store)")
    assert pack(episodes[0], None, 100) is None


def test_an_episode_can_be_asked_for(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "run" / "episodes")
    episodes = [dataclasses.replace(serial_episode(), index=index) for index in range(30)]
    for step in (1, 2, 3):
        store.write(step, episodes, policy_version=0)
    page = _page(write_report(tmp_path / "run", tmp_path / "report.html", ["chain-1#29"]))
    assert [e["id"] for e in episodes_of(page)[:3]] == [f"train-{step:06d}:29" for step in (1, 2, 3)]
    page = _page(write_report(tmp_path / "run", tmp_path / "report.html", ["train-000002:28"]))
    assert [e["id"] for e in episodes_of(page)[:1]] == ["train-000002:28"]
    listed = CliRunner().invoke(app, ["episodes", "show", str(store.folder), "train-000002:28", "--json"]).output
    assert json.loads(listed)["episode"] == episodes_of(page)[0]["id"]  # one name, wherever it is copied from
    with pytest.raises(UserError, match=r"no episode 'none' in .*run; there are 90, for example chain-1#0"):
        write_report(tmp_path / "run", tmp_path / "report.html", ["none"])


def test_missing_pieces_are_noted_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    page = _page(write_report(tmp_path / "bare", tmp_path / "report.html"))
    for part in ("summary.json", "metrics.jsonl", "No stored episodes"):
        assert part in page.text
    (tmp_path / "bare" / "metrics.jsonl").write_text(
        '{"step": 1, "kind": "train", "reward/total": 0.5, "x": null}\n{"st'
    )
    (tmp_path / "bare" / "summary.json").write_text('{"trained": {"wide": {"item_f1": 0.5}}}')
    page = _page(write_report(tmp_path / "bare", tmp_path / "report.html"))
    assert "0.500" in page.text and "single_agent/metrics.jsonl" in page.text


@pytest.mark.parametrize("name", ["", "things", "/dev/null"])
def test_a_report_is_not_written_just_anywhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["report", str(tmp_path / name)])
    assert done.exit_code == 2 and "no run or store in" in done.stderr
    assert not list(tmp_path.rglob("*.html"))


def test_no_run_or_a_damaged_one_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "none", tmp_path / "report.html")
    with pytest.raises(UserError, match=r"is no shard of a store"):
        (tmp_path / "x.parquet").write_bytes(b"")
        write_report(tmp_path / "x.parquet", tmp_path / "report.html")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        write_report(tmp_path, tmp_path / "report.html")


def test_an_unreadable_store_exits_with_2_and_names_file_and_episode(tmp_path: Path) -> None:
    def report() -> str:
        done = CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(tmp_path / "out" / "report.html")])
        assert done.exit_code == 2 and "Traceback" not in done.output
        assert not (tmp_path / "out").exists()
        return done.output

    store = EpisodeStore(tmp_path)
    path = store.write(4, [swarm_episode(), serial_episode()], policy_version=0)
    table = pq.read_table(path)
    column = table.schema.get_field_index("traces")
    cut = [text[:-5] for text in table.column("traces").to_pylist()]
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(cut, pa.large_string())), path)
    assert re.search(r"train-000004\.parquet: episode 0 \(wide-1#0\) is damaged", report())
    path.write_bytes(b"no Parquet at all")
    assert "train-000004.parquet: not a readable Parquet shard" in report()
