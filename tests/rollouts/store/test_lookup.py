"""Single episodes of a shard are read back unchanged; a damaged one is reported and spares the others."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import make_episode, plain

from rollouts.store.lookup import read_columns, read_episodes, shards
from rollouts.store.store import EpisodeStore, StoreError


def test_single_episodes_and_columns_are_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rollouts.store.store._ROW_GROUP", 2)
    written = [make_episode(index) for index in range(5)]
    path = EpisodeStore(tmp_path).write(0, written, policy_version=0)
    assert plain(read_episodes(path, [4, 0, 3])) == plain([written[4], written[0], written[3]])
    assert read_columns(path, ["index", "metrics"])[1] == {"index": 1, "metrics": written[1].metrics}


def test_shards_are_listed_by_kind_and_step(tmp_path: Path):
    store = EpisodeStore(tmp_path / "s")
    for step, kind in ((3, "train"), (1_000_000, "train"), (0, "cold_start")):
        store.write(step, [], policy_version=0, kind=kind)
    (tmp_path / "s" / "other.parquet").write_bytes(b"")
    (tmp_path / "s" / "data-00000-of-00001.parquet").write_bytes(b"")
    found = [(kind, step) for kind, step, _ in shards(tmp_path / "s")]
    assert found == [("cold_start", 0), ("train", 3), ("train", 1_000_000)]
    assert shards(tmp_path / "none") == []


def test_a_damaged_episode_is_named_with_its_file_and_the_others_can_be_read(tmp_path: Path):
    path = EpisodeStore(tmp_path).write(0, [make_episode(index) for index in range(3)], policy_version=0)
    table = pq.read_table(path)
    traces = table.column("traces").to_pylist()
    traces[1] = traces[1][:99]
    column = table.schema.get_field_index("traces")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(traces, pa.large_string())), path)
    with pytest.raises(StoreError, match=r"train-000000\.parquet: episode 1 \(k1#1\) is damaged"):
        read_episodes(path, [1])
    assert plain(read_episodes(path, [2])) == plain([make_episode(2)])
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"train-000000\.parquet: .*(cannot be read|damaged)"):
        read_episodes(path, [2])


def test_what_is_no_shard_is_named(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"garbage")
    with pytest.raises(StoreError, match=r"a\.parquet: not a readable Parquet shard"):
        read_columns(tmp_path / "a.parquet", ["index"])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    with pytest.raises(StoreError, match=r"b\.parquet: was not written by parl"):
        read_episodes(tmp_path / "b.parquet", [0])
