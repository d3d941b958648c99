"""Listing, showing and searching stored episodes, from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from stored import chain_task, make_episode, make_run
from tiny import tiny_config
from typer.testing import CliRunner

from envs.base import ToolResult
from model.tokenizer.tokenizer import Tokenizer
from parl.cli.main import app
from parl.episodes.listing import Filter, find_episode, list_episodes, search
from parl.errors import UserError
from parl.report.timeline import episode_to_timeline
from rollouts.store.store import EpisodeStore, read_shard


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tiny_config(tmp_path_factory.mktemp("runs"), trainer={"steps": 4}))


def _run(*args: object):
    return CliRunner().invoke(app, ["episodes", *map(str, args)])


def test_ls_lists_every_episode_and_filters(run: Path):
    rows = [json.loads(line) for line in _run("ls", run, "--json").stdout.splitlines()]
    assert len(rows) == 2 * 4 * 12 + 3 * 6
    chosen = [
        json.loads(line) for line in _run("ls", run, "--json", "--step", 2, "--family", "wide").stdout.splitlines()
    ]
    assert [row for row in rows if row["step"] == 2 and row["family"] == "wide"] == chosen and len(chosen) == 16
    assert len(_run("ls", run, "--json", "--limit", 3).stdout.splitlines()) == 3
    stored, _ = read_shard(run / "eval" / "trained-000000.parquet")
    trained = [row for row in rows if row["episode"].startswith("trained")]
    assert [row["reward"] for row in trained] == [episode.rewards["total"] for episode in stored]
    assert [row["tokens"] for row in trained] == [sum(len(t.tokens) for t in e.traces) for e in stored]
    assert "trained-000000:4" in _run("ls", run / "eval").stdout
    assert _run("ls", run, "--status", "lost").exit_code == 2


def test_pictures_are_named_where_they_were_shown(tmp_path: Path):
    episode = make_episode(chain_task(1), spawning=False)
    turn = episode.orchestrator.turns[0]
    turn.results = [ToolResult(text="", images=(b"a file", b"another"))]
    EpisodeStore(tmp_path).write(1, [episode], policy_version=0)
    assert "= [picture]" in _run("show", tmp_path, "train-000001:0").stdout
    [row] = [json.loads(_run("show", tmp_path, "train-000001:0", "--json").stdout)]
    results = [result for t in row["agents"][0]["turns"] for result in t["results"]]
    assert results[0] == {"text": "", "error": None, "pictures": 2}
    assert all("pictures" not in result for result in results[1:])
    assert episode_to_timeline(episode)["agents"][0]["turns"][0]["results"][0]["text"] == "[picture]\n[picture]"


def test_show_prints_the_tree_with_its_messages_and_the_critical_path(run: Path):
    done = _run("show", run, "trained-000000:4")
    assert done.exit_code == 0, done.output
    episode = read_shard(run / "eval" / "trained-000000.parquet")[0][4]
    assert f"{episode.metrics['critical_steps']} critical steps, {episode.metrics['total_steps']} in all" in done.stdout
    for trace in episode.subagents:
        assert f"{trace.agent_id} worker {trace.status}, {trace.steps} steps: {trace.prompt}" in done.stdout
    longest = max(episode.subagents, key=lambda trace: trace.steps)
    assert f"> {longest.agent_id} worker" in done.stdout
    assert done.stdout.count("> 0/") == 1  # one sub-agent of the stage is critical
    same = _run("show", run / "eval", f"{episode.task.key}#0", "--json").stderr
    assert "3 episodes are called" in same and "trained-000000:4 in eval" in same


def test_show_as_json_holds_the_messages_and_not_the_gold(run: Path):
    row = json.loads(_run("show", run / "eval" / "trained-000000.parquet", "wide-4#0", "--json").stdout)
    episode = read_shard(run / "eval" / "trained-000000.parquet")[0][4]
    assert row["agents"][0]["turns"][-1]["content"] == episode.answer == row["answer"]
    assert row["agents"][1]["turns"][0]["calls"] == [{"name": "search", "arguments": {"query": "row 0"}}]
    assert "gold" not in row and "oracle" not in row


def test_the_raw_stream_is_decoded_with_the_runs_vocabulary(run: Path, tokenizer: Tokenizer, tmp_path: Path):
    missing = _run("show", run, "trained-000000:0", "--raw")
    assert missing.exit_code == 2 and "policy/tokenizer.json: no such file" in missing.stderr
    episodes, _ = read_shard(run / "eval" / "trained-000000.parquet")
    text = "Report the age of each."
    episodes[0].orchestrator.tokens = ids = [*tokenizer.encode(text), tokenizer.special["<|im_end|>"]]
    for name in ("mask", "logprobs", "versions"):
        setattr(episodes[0].orchestrator, name, [0] * len(ids))
    EpisodeStore(tmp_path / "s").write(0, episodes, policy_version=0)
    tokenizer.save(tmp_path / "tokenizer.json")
    done = _run("show", tmp_path / "s", "train-000000:0", "--raw", "--tokenizer", tmp_path / "tokenizer.json")
    assert f"--- 0\n{text}<|im_end|>" in done.stdout


def test_grep_finds_what_was_said_where(run: Path):
    hits = list(search(run, re.compile(r"find row 2"), Filter(kind="trained")))
    episodes, _ = read_shard(run / "eval" / "trained-000000.parquet")
    expected = [
        (f"trained-000000:{i}", t.agent_id)
        for i, e in enumerate(episodes)
        for t in e.traces
        if t.prompt == "find row 2"
    ]
    assert [(hit.ref, hit.agent) for hit in hits if hit.where == "prompt"] == expected
    answer = next(h for h in search(run, re.compile("uncle0"), Filter(kind="trained")) if h.where == "content")
    assert (answer.agent, answer.around()) == ("0", ("Answer: ", "uncle0", ""))
    shown = _run("grep", "FIND ROW 2", run, "-i", "--kind", "trained").stdout
    assert "trained-000000:1 0/2 prompt: find row 2" in shown
    assert json.loads(_run("grep", "age", run, "--json", "--limit", 1).stdout)["match"] == "age"


def test_grep_exits_as_grep_does(run: Path):
    assert _run("grep", "no such words", run).exit_code == 1
    assert _run("grep", "(", run).exit_code == 2
    assert _run("grep", "-F", '(query="row 0")', run, "--limit", 1).exit_code == 0


def test_what_cannot_be_found_is_said_with_its_fix(run: Path):
    for name, text in {
        "train-000002": "names no episode: give SHARD:ROW",
        "train-000002:99": "2 shards are called train-000002",
        "train-000077:0": "no shard train-000077",
        "nobody#0": "no episode nobody#0",
        "trained-000000:99": r"has 6 episodes, numbered from 0: there is no 99",
    }.items():
        with pytest.raises(UserError, match=text):
            find_episode(run, name)


def test_a_damaged_store_ends_the_listing_with_its_name(tmp_path: Path):
    run = make_run(tiny_config(tmp_path, trainer={"steps": 4}), tasks=3)
    path = run / "episodes" / "train-000002.parquet"
    path.write_bytes(path.read_bytes()[:500])
    for command in (["ls", run], ["grep", "age", run], ["show", run / "episodes", "train-000002:0"]):
        done = _run(*command)
        assert done.exit_code == 2 and "train-000002.parquet: not a readable Parquet shard (500 bytes" in done.stderr
    assert len(list(list_episodes(run / "eval", Filter()))) == 9
