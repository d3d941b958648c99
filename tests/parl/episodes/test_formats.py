"""Formats of other tools: round trips, losses, redaction, and files written by their own models."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich_episode import difference, rich_episode

from envs.tasks_io import save_tasks
from parl.episodes.exchange import chosen_format, export_episodes, import_episodes
from parl.episodes.formats import atif, verifiers
from parl.episodes.formats.common import ExportOptions, FormatError
from parl.episodes.formats.registry import FORMATS
from parl.episodes.listing import Filter
from parl.errors import UserError
from parl.shown.redaction import REDACTED, redact
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode
from rollouts.store.store import EpisodeStore, read_shard

DATA = Path(__file__).parents[2] / "data" / "formats"
DOCS = Path(__file__).parents[3] / "docs" / "formats.md"
READ = [name for name, form in FORMATS.items() if form.load]
WHOLE = ExportOptions(keep_gold=True)


def there_and_back(name: str, options: ExportOptions = WHOLE):
    form = FORMATS[name]
    assert form.load is not None
    documents = [json.loads(json.dumps(document)) for document in form.export(rich_episode(), options)]
    return [episode for document in documents for episode in form.load(document, Path())]


def documented(name: str) -> str:
    """The format's row of the documentation."""
    [row] = re.findall(rf"^\| `{name}` \|.*$", DOCS.read_text(), re.MULTILINE)
    return row


def lost_by(name: str) -> set[str]:
    """The fields that the documentation lists as lost."""
    return set(re.findall(r"`((?:task|episode|trace|turn|result)[.\w]*)`", documented(name)))


@pytest.fixture
def store(tmp_path):
    EpisodeStore(tmp_path / "store").write(3, [rich_episode()], policy_version=4)
    return tmp_path / "store"


@pytest.mark.parametrize("name", READ)
def test_what_differs_after_going_there_and_back_is_exactly_what_is_documented(name):
    [back] = there_and_back(name)
    assert difference(rich_episode(), back) == lost_by(name)


@pytest.mark.parametrize("name", ["atif", "verifiers"])
def test_critical_steps_are_counted_from_the_traces_whatever_the_file_claims(name):
    form = FORMATS[name]
    assert form.load is not None
    text = json.dumps(list(form.export(rich_episode(), WHOLE)))
    [document] = json.loads(text.replace('"critical_steps": 5', '"critical_steps": 1'))
    [back] = form.load(document, Path())
    assert back.metrics == {} and critical_steps(back) == critical_steps(rich_episode()) == 5


@pytest.mark.parametrize("name", FORMATS)
def test_gold_and_secrets_do_not_leave(name, store, tmp_path):
    out = tmp_path / "out"
    export_episodes(store, out, FORMATS[name], Filter(), ExportOptions())
    text = "".join(file.read_text() for file in (out.rglob("*.json") if out.is_dir() else [out]))
    assert "Ada" not in text and "sk-abc" not in text and '"steps": [1]' not in text
    kept = tmp_path / "kept"
    export_episodes(store, kept, FORMATS["atif"], Filter(), WHOLE)
    assert "Ada" in next(kept.glob("*.json")).read_text()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer abcdef123456", f"Authorization: Bearer {REDACTED}"),
        ("password=hunter22x ok", f"password={REDACTED} ok"),
        ("hf_abcdefghijklmnopqrstu", REDACTED),
        ("AKIAABCDEFGHIJKLMNOP", REDACTED),
        ("the secret of the asking price", "the secret of the asking price"),
        ("task-force one", "task-force one"),
    ],
)
def test_keys_are_replaced_and_prose_is_not(text, left):
    assert redact({"a": [text]}) == {"a": [left]}


def test_a_store_goes_out_and_comes_in_as_a_store(store, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    assert export_episodes(store, out, chosen_format("atif"), Filter(), WHOLE) == (1, 1)
    assert import_episodes(out, back, chosen_format("atif")) == 1
    [episode], _ = read_shard(back / "imported-000000.parquet")
    # there was a key in a call, which the token ids would spell
    gone = {"tokens", "mask", "logprobs", "versions"}
    lost = {"turn.calls", "turn.start", "turn.end", *(f"trace.{name}" for name in gone)}
    assert difference(rich_episode(), episode) == {*lost_by("atif"), *lost}


def test_gold_that_was_left_out_comes_back_from_a_file_of_tasks(store, tmp_path):
    out, tasks = tmp_path / "out.jsonl", tmp_path / "tasks.jsonl"
    export_episodes(store, out, chosen_format("widesearch"), Filter(), ExportOptions())
    save_tasks([rich_episode().task], tasks)
    import_episodes(out, tmp_path / "back", chosen_format("widesearch"), tasks, split="val")
    [episode], _ = read_shard(tmp_path / "back" / "imported-000000.parquet")
    assert episode.task == rich_episode().task


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("{", "atif", "not JSON"),
        ("[]", "atif", "not an object"),
        ("{}", "atif", "no ATIF document"),
        ('{"steps": [{}], "schema_version": "ATIF-v1.8"}', "atif", "KeyError"),
        ("{}", "verifiers", "no traces"),
        ("{}", "verifiers-results", "prompt and completion"),
        ('{"messages": [1]}', "openai", "message 0"),
        ("{}", "widesearch", "instance_id"),
        ("{}", "browsecomp-plus", "query_id"),
        ("{}", "otel", "only written"),
        ("{}", "trace-events", "only written"),
        ("{}", "atfi", "must be one of"),
    ],
)
def test_a_file_that_is_not_of_its_format_is_named(text, name, said, tmp_path):
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        import_episodes(file, tmp_path / "out", chosen_format(name))
    assert name in str(caught.value) or str(file) in str(caught.value)


def test_a_missing_sub_agent_is_an_error_and_not_a_shorter_critical_path():
    document = atif.export(rich_episode(), WHOLE)
    del document["subagent_trajectories"][1]
    with pytest.raises(FormatError, match="0/1"):
        atif.load(document)


def test_a_trajectory_may_lie_in_a_file_of_its_own(tmp_path):
    document = atif.export(rich_episode(), WHOLE)
    [*_, child] = document["subagent_trajectories"]
    document["subagent_trajectories"].remove(child)
    (tmp_path / "child.json").write_text(json.dumps(child))
    text = json.dumps(document).replace('{"trajectory_id": "0/1"}', '{"trajectory_path": "child.json"}')
    assert difference(rich_episode(), atif.load(json.loads(text), tmp_path)) == lost_by("atif")


def test_a_trajectory_of_another_harness_is_read_with_its_sub_agents_and_tokens():
    """Without our own fields: ids, turns, token stream and critical steps come from the standard's fields."""
    document = json.loads(json.dumps(atif.export(rich_episode(), WHOLE)))

    def strip(part):
        part["extra"] = None
        part["trajectory_id"] = "x" + part["trajectory_id"]
        seen: list[int] = []
        for step in part["steps"]:
            for item in (step.get("observation") or {}).get("results", []):
                for reference in item.get("subagent_trajectory_ref", []):
                    reference["trajectory_id"] = "x" + reference["trajectory_id"]
            if step["source"] == "agent":
                metrics, step["extra"] = step["metrics"], None
                seen += metrics["extra"].pop("new_prompt_token_ids")
                metrics["prompt_token_ids"] = list(seen)
                seen += metrics["completion_token_ids"]
        for child in part.get("subagent_trajectories", []):
            strip(child)

    strip(document)
    back = atif.load(document)
    wanted = rich_episode()
    assert [trace.agent_id for trace in back.traces] == ["0", "0/0", "0/1"]
    assert critical_steps(back) == critical_steps(wanted)
    assert back.orchestrator.tokens == wanted.orchestrator.tokens and back.orchestrator.mask == wanted.orchestrator.mask
    assert back.task.prompt == wanted.task.prompt and back.traces[1].message == "36"


@pytest.mark.parametrize("name", ["atif", "verifiers", "otel"])
def test_sub_agents_that_another_harness_launched_in_its_own_way_stay_with_their_turn(name):
    episode = rich_episode()
    turn = episode.orchestrator.turns[1]
    turn.calls = [replace(call, name="delegate", arguments={"to": "both"}) for call in turn.calls[:1]]
    turn.results = turn.results[:1]
    [document] = FORMATS[name].export(episode, WHOLE)
    if name == "otel":
        spans = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
        assert sum(span["name"] == "invoke_agent reader" for span in spans) == 2
        return
    load = FORMATS[name].load
    [back] = load(json.loads(json.dumps(document)), Path()) if load else []
    assert back.orchestrator.turns[1].spawned == ["0/0", "0/1"] and critical_steps(back) == critical_steps(episode)


@pytest.mark.parametrize(("file", "load"), [("atif.json", atif.load), ("verifiers.json", verifiers.load)])
def test_files_that_the_formats_own_models_wrote_are_read(file, load):
    """Golden files: our export, validated and written again by harbor 0.24.0 and verifiers 0.4.0."""
    found = load(json.loads((DATA / file).read_text()))
    episode = found if not hasattr(found, "__next__") else next(found)
    assert difference(rich_episode(), episode) == lost_by(file.removesuffix(".json"))


@pytest.mark.parametrize(
    ("file", "export"), [("atif.ours.json", atif.export), ("verifiers.ours.json", verifiers.export)]
)
def test_what_is_written_is_what_those_models_accepted(file, export):
    assert json.loads(json.dumps(export(rich_episode(), WHOLE))) == json.loads((DATA / file).read_text())


def test_spans_nest_as_agents_do():
    [request] = FORMATS["otel"].export(rich_episode(), WHOLE)
    spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"]
    by_id = {span["spanId"]: span for span in spans}
    assert len(by_id) == len(spans) and len({span["traceId"] for span in spans}) == 1
    [root] = [span for span in spans if "parentSpanId" not in span]
    assert root["name"] == "invoke_agent orchestrator"
    readers = [span for span in spans if span["name"] == "invoke_agent reader"]
    assert [by_id[span["parentSpanId"]]["name"] for span in readers] == ["execute_tool assign_task"] * 2
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)


@pytest.mark.parametrize(
    ("answer", "patch"),
    [
        (
            "Mended:\n```diff\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n```\nDone.",
            "diff --git a/x b/x\n--- a/x\n+++ b/x\n",
        ),
        ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b", "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"),
        ("I gave up.", ""),
    ],
)
def test_swe_bench_gets_the_patch_of_an_answer(answer: str, patch: str):
    episode = rich_episode()
    episode.answer = answer
    [row] = FORMATS["swe-bench"].export(episode, WHOLE)
    assert row == {"instance_id": episode.task.key, "model_name_or_path": "parl", "model_patch": patch}


def events_of(episode: Episode) -> list[dict[str, Any]]:
    """Trace events, each as the format wants it."""
    [document] = FORMATS["trace-events"].export(episode, WHOLE)
    events = json.loads(json.dumps(document))["traceEvents"]
    wanted = {"M": {"args"}, "X": {"cat", "ts", "dur", "args"}, "s": {"cat", "ts", "id"}, "f": {"cat", "ts", "id"}}
    for event in events:
        assert event.keys() >= {"name", "ph", "pid", "tid"} | wanted[event["ph"]], event
        assert isinstance(event.get("ts", 0), int) and event.get("dur", 0) >= 0
        assert event["ph"] != "f" or event["bp"] == "e"
    return events


def timed_episode() -> Episode:
    """The rich episode with consistent times: the launching turn ends when its sub-agents have."""
    episode = rich_episode()
    last = max(turn.t_end for trace in episode.traces[1:] for turn in trace.turns)
    launching, after = episode.orchestrator.turns[1:]
    launching.t_end = last
    after.t_start, after.t_model, after.t_end = last + 0.1, last + 0.5, last + 0.5
    return episode


def test_trace_events_have_a_track_for_each_agent_a_slice_for_each_turn_and_call_and_are_sorted():
    episode = timed_episode()
    events = events_of(episode)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {0: "critical path", 1: "0 orchestrator", 2: "0/0 reader", 3: "0/1 reader"}
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times) and [event["ph"] for event in events].index("X") == len(names) * 2 + 1
    slices = [event for event in events if event["ph"] == "X"]
    of_agents = [event for event in slices if event["tid"]]
    turns = [turn for trace in episode.traces for turn in trace.turns]
    assert len(of_agents) == len(turns) + sum(len(turn.calls) for turn in turns)
    assert {event["args"].get("agent") for event in of_agents if event["cat"] == "spawn"} == {"0/0", "0/1"}
    [failed] = [event for event in of_agents if event["name"] == "search"]
    assert (failed["args"]["error"], failed["dur"]) == ("server", 500_000)
    for one, other in itertools.combinations(slices, 2):  # slices of a track lie one in the other, or apart
        if one["tid"] == other["tid"]:
            ends = one["ts"] + one["dur"], other["ts"] + other["dur"]
            assert other["ts"] >= ends[0] or ends[1] <= ends[0], (one, other)


def test_trace_events_mark_the_critical_path():
    events = events_of(timed_episode())
    path = [event for event in events if event["ph"] == "X" and event["tid"] == 0]
    assert [(event["args"]["agent"], event["args"]["turn"]) for event in path] == [
        *(("0", 0), ("0", 1), ("0/0", 0), ("0/0", 1), ("0", 2))
    ]
    assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in itertools.pairwise(path))
    marked = [event for event in events if event["ph"] == "X" and "model,critical" in event["cat"]]
    assert [(event["tid"], event["name"]) for event in marked] == [
        *((1, "turn 0"), (1, "turn 1"), (2, "turn 0"), (2, "turn 1"), (1, "turn 2"))
    ]


def test_arrows_go_from_the_launch_to_the_sub_agent_and_back_each_with_both_ends_in_a_slice():
    events = events_of(timed_episode())
    begun = {event["id"]: event for event in events if event["ph"] == "s"}
    ended = {event["id"]: event for event in events if event["ph"] == "f"}
    assert begun.keys() == ended.keys() and len(begun) == 4
    ways = [(begun[i]["name"], begun[i]["tid"], ended[i]["tid"]) for i in begun]
    assert sorted(ways) == [("finish", 2, 1), ("finish", 3, 1), ("spawn", 1, 2), ("spawn", 1, 3)]
    slices = [event for event in events if event["ph"] == "X"]
    for event in (*begun.values(), *ended.values()):
        inside = [s for s in slices if s["tid"] == event["tid"] and s["ts"] <= event["ts"] <= s["ts"] + s["dur"]]
        assert inside and begun[event["id"]]["ts"] <= ended[event["id"]]["ts"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_documented_with_what_it_loses(name: str):
    assert FORMATS[name].what in documented(name) and lost_by(name)
