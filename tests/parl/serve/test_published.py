"""Versions offered over HTTP or at an fsspec address, and fetched by a server's puller."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from parl.errors import UserError
from parl.serve.published import Published
from rollouts.engine.servers.blobs import Manifest
from rollouts.engine.servers.puller import Pulled, Puller, fetch

SHARDS = 3


def version(place: Path, number: int, changed: int) -> Path:
    """A folder of shards of which ``changed`` numbers differ from the version before."""
    folder = place / f"v{number}"
    folder.mkdir(parents=True)
    for index in range(SHARDS):
        words = np.random.default_rng(index).integers(0, 2**16, 20_000, dtype=np.uint16)
        if index:  # the first shard never changes
            words[: changed * number + index] ^= 1
        (folder / f"model-{index}.safetensors").write_bytes(words.tobytes())
    return folder


@pytest.fixture(params=["http", "fsspec"])
def offered(request, tmp_path):
    place = None if request.param == "http" else f"file://{tmp_path / 'bucket'}"
    published = Published(place, tmp_path / "deltas")
    yield published
    published.close()


def pulled(puller: Puller, manifest: Manifest) -> Pulled:
    state = Pulled(version=manifest.version)
    puller.pull(manifest, state)
    return state


def same(puller: Puller, manifest: Manifest, folder: Path) -> bool:
    files = sorted(folder.glob("*.safetensors"))
    names = [shard.whole.sha256 for shard in manifest.shards]
    return all(puller.path(n).read_bytes() == f.read_bytes() for n, f in zip(names, files, strict=True))


def test_only_what_changed_is_fetched_and_every_byte_arrives(offered, tmp_path):
    puller = Puller(tmp_path / "cache")
    first = offered.publish("policy", 0, version(tmp_path, 0, 0), word=2)
    state = pulled(puller, first)
    assert (state.fetched, state.wholes, state.deltas) == (first.size, SHARDS, 0)
    for number in (1, 2, 3):
        folder = version(tmp_path, number, 100)
        manifest = offered.publish("policy", number, folder, word=2)
        state = pulled(puller, manifest)
        assert (state.wholes, state.deltas) == (0, SHARDS - 1) and state.fetched < 0.05 * manifest.size
        assert same(puller, manifest, folder)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1 + 2 * (SHARDS - 1)  # two versions are kept
    assert len(list((tmp_path / "deltas").glob("*"))) == 2 * (SHARDS - 1)


def test_a_server_without_the_version_before_fetches_the_whole(offered, tmp_path):
    offered.publish("policy", 0, version(tmp_path, 0, 0), word=2)
    folder = version(tmp_path, 1, 100)
    manifest = offered.publish("policy", 1, folder, word=2)
    puller = Puller(tmp_path / "late")
    assert pulled(puller, manifest).wholes == SHARDS and same(puller, manifest, folder)


def test_a_shard_that_was_damaged_on_the_servers_disk_is_repaired(offered, tmp_path):
    first = offered.publish("policy", 0, version(tmp_path, 0, 0), word=2)
    pulled(Puller(tmp_path / "cache"), first)
    for file in (tmp_path / "cache").glob("*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    folder = version(tmp_path, 1, 100)
    manifest = offered.publish("policy", 1, folder, word=2)
    puller = Puller(tmp_path / "cache")  # restarted: it trusts no file unread
    state = pulled(puller, manifest)
    assert state.wholes == SHARDS and same(puller, manifest, folder)


def test_servers_with_one_folder_do_not_delete_each_others_shards(offered, tmp_path):
    ours, theirs = Puller(tmp_path / "cache"), Puller(tmp_path / "cache")  # of two pools, or of two runs
    frozen, folder = version(tmp_path / "frozen", 9, 77), tmp_path / "frozen" / "v9"
    kept = offered.publish("frozen", 0, frozen, word=2)
    pulled(theirs, kept)
    for number in range(4):
        pulled(ours, offered.publish("policy", number, version(tmp_path, number, 100), word=2))
    assert same(theirs, kept, folder)
    assert pulled(Puller(tmp_path / "cache"), kept).fetched == 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1 + (SHARDS - 1) * 3  # two versions, and theirs


def test_a_shard_that_somebody_deleted_is_fetched_again_when_it_is_loaded(offered, tmp_path):
    folder = version(tmp_path, 0, 0)
    manifest = offered.publish("policy", 0, folder, word=2)
    puller = Puller(tmp_path / "cache")
    pulled(puller, manifest)
    for file in (tmp_path / "cache").glob("*.safetensors"):
        file.unlink()
    assert same(puller, manifest, folder)


def test_bytes_that_are_not_the_blob_never_get_its_name(offered, tmp_path, monkeypatch):
    monkeypatch.setattr("rollouts.engine.servers.puller._PAUSE_S", 0.0)
    folder = version(tmp_path, 0, 0)
    manifest = offered.publish("policy", 0, folder, word=2)
    name = manifest.shards[1].whole.sha256
    (tmp_path / "bucket" / name if offered.remote else folder / "model-1.safetensors").write_bytes(b"?" * 40_000)
    puller = Puller(tmp_path / "cache")
    with pytest.raises(ValueError, match=f"not blob {name}"):
        pulled(puller, manifest)
    assert not (tmp_path / "cache" / f"{name}.safetensors").exists()
    with pytest.raises(FileNotFoundError):
        puller.path(name)


def test_only_published_blobs_are_given_and_only_for_their_signature(tmp_path):
    offered = Published(None, tmp_path / "deltas")
    manifest = offered.publish("policy", 0, version(tmp_path, 0, 0), word=2)
    (tmp_path / "secret").write_text("secret")
    one, other = manifest.shards[0].whole, manifest.shards[1].whole
    with httpx.Client(base_url=offered.where, trust_env=False) as client:
        assert offered.where.startswith("http://127.0.0.1:")
        assert client.get(f"/{one.sha256}", headers={"x-parl-sign": one.sign}).status_code == 200
        for path, sign in [
            (one.sha256, ""), (one.sha256, other.sign), (one.sha256, one.sign.upper()), ("0" * 64, one.sign),
            ("../secret", one.sign), ("%2e%2e%2fsecret", one.sign), ("", one.sign), (one.sha256, "é"),
        ]:  # fmt: skip
            given = {b"x-parl-sign": sign.encode()}
            answer = client.get(f"/{path}", headers=given)
            assert answer.status_code in (403, 404) and b"secret" not in answer.content, path
        assert client.post(f"/{one.sha256}", headers={"x-parl-sign": one.sign}).status_code == 405
    offered.close()
    with pytest.raises(OSError, match="cannot be read"):
        fetch(offered.where, one)


def test_old_versions_are_withdrawn_but_another_pools_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("rollouts.engine.servers.puller._PAUSE_S", 0.0)
    offered = Published(None, tmp_path / "deltas")
    frozen = offered.publish("frozen", 0, version(tmp_path / "frozen", 0, 0), word=2)
    old = offered.publish("policy", 0, version(tmp_path, 7, 11), word=2)
    for number in (1, 2):
        offered.publish("policy", number, version(tmp_path, number, 100), word=2)
    with pytest.raises(ConnectionError, match="403"):
        fetch(offered.where, old.shards[1].whole)
    assert pulled(Puller(tmp_path / "cache"), frozen).wholes == SHARDS
    offered.close()


def test_a_pools_shards_are_given_after_another_pool_with_the_same_ones_has_deleted_its_folders(offered, tmp_path):
    """Frozen sub-agents have the policy's first weights, whose folder is deleted at its second next version."""
    frozen = offered.publish("frozen", 0, version(tmp_path / "frozen", 0, 0), word=2)
    folders = [version(tmp_path / "policy", number, 100 * (number > 0)) for number in range(4)]
    for number, folder in enumerate(folders):
        if number > 1:
            shutil.rmtree(folders[number - 2])
        policy = offered.publish("policy", number, folder, word=2)
        for name, manifest in (("frozen", frozen), ("policy", policy)):
            assert pulled(Puller(tmp_path / f"{name}-{number}"), manifest).wholes == SHARDS


def test_a_pull_goes_on_in_the_background_and_tells_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr("rollouts.engine.servers.puller._PAUSE_S", 0.0)
    offered = Published(None, tmp_path / "deltas")
    manifest = offered.publish("policy", 0, version(tmp_path, 0, 0), word=2)
    puller = Puller(tmp_path / "cache")
    puller.begin(manifest)
    state = _until_done(puller)
    assert state["fetched"] == manifest.size and not state["error"]
    offered.close()
    puller = Puller(tmp_path / "other")
    puller.begin(manifest)
    assert "ConnectionError" in _until_done(puller)["error"]


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(PermissionError, match="set PARL_WEIGHTS"):
        Puller(tmp_path)


def test_an_address_that_is_not_this_machines_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"publish=192\.0\.2\.1.*cannot listen"):
        Published("192.0.2.1", tmp_path)


def _until_done(puller: Puller) -> dict:
    for _ in range(600):
        if puller.state()["done"]:
            return puller.state()
        time.sleep(0.05)
    raise AssertionError("the pull does not end")
