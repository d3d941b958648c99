"""Stored episodes are read back exactly, in whole shards or not at all."""

import dataclasses
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.base import ErrorKind, Gold, Oracle, Role, Task, ToolCall, ToolResult
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.store.store import EpisodeStore, StoreError

TASK = Task(
    key="k1",
    family="wide",
    split="train",
    prompt="Größe? 大",
    gold=Gold(
        kind="table", columns=("A", "B"), unique_columns=("A",), rows=(("x", "1"), ("y", "2")), aliases={"ex": "x"}
    ),
    oracle=Oracle(serial_steps=8, parallel_steps=4, width=2),
    width=2,
    plan={"keys": ["x", "y"], "nested": {"n": 1}},
)


def make_trace(agent_id="0", tokens=50, routes=True, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(tokens) < 0.5
    logprobs = np.where(mask, -rng.exponential(size=tokens), 0).astype(np.float32)
    root = agent_id == "0"
    call = ToolCall(
        id="functions.assign_task:0", name="assign_task", arguments={"agent": "a", "n": 0.1, "odd": "\ud800"}
    )
    return Trace(
        agent_id=agent_id,
        role=Role.ORCHESTRATOR if root else Role.SUBAGENT,
        name="" if root else "finder",
        parent=None if root else "0",
        parent_turn=None if root else 0,
        prompt="find 大",
        status=TraceStatus.FINISHED if root else TraceStatus.CANCELLED,
        message="ünï",
        tokens=rng.integers(0, 160_000, tokens).tolist(),
        mask=mask.tolist(),
        logprobs=logprobs.tolist(),
        versions=np.where(mask, 3, -1).tolist(),
        routes=rng.integers(0, 384, (tokens, 3, 2)).astype(np.int16) if routes else None,
        turns=[
            Turn(
                start=1,
                end=4,
                content="c",
                calls=[call],
                results=[ToolResult(text="r", latency_s=0.1 + 0.2), ToolResult(text="", error=ErrorKind.TIMEOUT)],
                spawned=["0/0", "0/1"] if root else [],
                t_start=0.1,
                t_model=1 / 3,
                t_end=2.0,
            ),
            Turn(start=7, end=9, malformed="no JSON"),
        ],
        trainable=root,
    )


def make_episode(index=0, **changes):
    traces = [make_trace(seed=index), make_trace("0/0", 7, False), make_trace("0/1", 0, False), make_trace("0/2", 4)]
    episode = Episode(
        task=TASK,
        index=index,
        seed=2**40 + index,
        traces=traces,
        status=EpisodeStatus.OVER_BUDGET,
        answer="| a |\n",
        limit="critical_steps",
        error="boom",
        critical_budget=16,
        wall_s=1 / 7,
        rewards={"total": 0.1 + 0.2, "perf": 0.0},
        metrics={"critical_steps": 5, "finish_rate": None, "deep": {"x": [1, 2.5, "s"]}},
    )
    return dataclasses.replace(episode, **changes)


def plain(value):
    """A comparable form of an episode with all types."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if dataclasses.is_dataclass(value):
        return (type(value), {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (type(value), [plain(item) for item in value])
    return (type(value), value)


def test_episodes_come_back_exactly(tmp_path):
    store = EpisodeStore(tmp_path / "episodes")
    written = [
        make_episode(0),
        make_episode(1, status=EpisodeStatus.FAILED),
        make_episode(2, task=dataclasses.replace(TASK, key="k2", oracle=None, plan={}, gold=Gold(kind="exact"))),
    ]
    path = store.write(12, written, policy_version=7)
    assert path.name == "train-000012.parquet"
    episodes, version = EpisodeStore(tmp_path / "episodes").read(12)
    assert version == 7
    assert plain(episodes) == plain(written)


def test_odd_float32_logprobs_are_bit_exact(tmp_path):
    values = np.array([-0.0, 1e-45, -3.4e38, -np.inf, 0.1], dtype=np.float32)
    trace = dataclasses.replace(make_trace(tokens=5), logprobs=values.tolist())
    store = EpisodeStore(tmp_path)
    store.write(0, [make_episode(traces=[trace])], policy_version=0)
    read = store.read(0)[0][0].orchestrator.logprobs
    assert np.array(read, dtype=np.float32).tobytes() == values.tobytes()


def test_a_shard_can_be_replaced_is_listed_and_absent_ones_are_none(tmp_path):
    store = EpisodeStore(tmp_path)
    assert store.steps() == [] and store.read(3) is None
    for step in (3, 1, 2):
        store.write(step, [make_episode(step)], policy_version=step)
    store.write(2, [], policy_version=9)
    store.write(5, [make_episode()], policy_version=0, kind="eval")
    assert store.steps() == [1, 2, 3] and store.steps("eval") == [5]
    assert store.read(2) == ([], 9)
    assert store.read(3, "eval") is None


def test_discarding_deletes_later_steps_of_that_kind_only(tmp_path):
    store = EpisodeStore(tmp_path)
    for step in range(4):
        store.write(step, [], policy_version=0)
        store.write(step, [], policy_version=0, kind="eval")
    assert store.discard_after(1) == [2, 3]
    assert store.steps() == [0, 1] and store.steps("eval") == [0, 1, 2, 3]
    assert store.discard_after(1) == []


def test_a_write_that_dies_half_way_leaves_the_old_shard(tmp_path, monkeypatch):
    store = EpisodeStore(tmp_path)
    store.write(1, [make_episode()], policy_version=1)

    def dies(table, path, **kwargs):
        path.write_bytes(b"PAR1 half")
        raise KeyboardInterrupt

    monkeypatch.setattr("rollouts.store.store.pq.write_table", dies)
    for step in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            store.write(step, [], policy_version=2)
    assert store.steps() == [1]
    assert store.read(1)[1] == 1
    monkeypatch.undo()
    store.write(2, [], policy_version=2)  # the left-over does not stand in the way
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == [
        "train-000001.parquet",
        "train-000002.parquet",
    ]


def test_unreadable_and_foreign_shards_are_named(tmp_path):
    store = EpisodeStore(tmp_path)
    store.path(1).write_bytes(b"garbage")
    with pytest.raises(StoreError, match=r"train-000001\.parquet: not a readable Parquet shard"):
        store.read(1)
    pq.write_table(pa.table({"x": [1]}), store.path(2))
    with pytest.raises(StoreError, match=r"train-000002\.parquet: was not written by parl"):
        store.read(2)
    table = pq.read_table(store.write(3, [], policy_version=0)).replace_schema_metadata({"parl_schema": "99"})
    pq.write_table(table, store.path(3))
    with pytest.raises(StoreError, match=r"train-000003\.parquet: has schema version 99; this parl reads"):
        store.read(3)
    with pytest.raises(ValueError, match="kind"):
        store.path(1, "../up")


def test_what_json_cannot_hold_is_refused_and_numpy_scalars_are_not(tmp_path):
    store = EpisodeStore(tmp_path)
    store.write(0, [make_episode(metrics={"x": np.float64(0.5), "y": np.arange(2)})], policy_version=0)
    assert store.read(0)[0][0].metrics == {"x": 0.5, "y": [0, 1]}
    with pytest.raises(TypeError, match="object"):
        store.write(1, [make_episode(metrics={"x": object()})], policy_version=0)
    assert store.steps() == [0]


def test_datasets_can_load_a_shard(tmp_path):
    path = EpisodeStore(tmp_path / "s").write(0, [make_episode(0), make_episode(1)], policy_version=4)
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["index"] == [0, 1] and rows["policy_version"] == [4, 4] and rows["status"] == ["over_budget"] * 2
    assert np.frombuffer(rows[0]["tokens"], "<i4")[:50].tolist() == make_episode().orchestrator.tokens


def test_a_training_step_of_960_traces_comes_back_as_it_was_written(tmp_path):
    """How long that takes is for ``benchmarks/store.py``."""
    traces = [make_trace("0", 800)] + [make_trace(f"0/{i}", 300, routes=False) for i in range(9)]
    episodes = [make_episode(i, traces=traces) for i in range(96)]
    store = EpisodeStore(tmp_path)
    store.write(0, episodes, policy_version=0)
    assert plain(store.read(0)[0]) == plain(episodes)


def test_the_store_imports_without_torch():
    code = "import sys, rollouts.store.store, rollouts.critical_path; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
