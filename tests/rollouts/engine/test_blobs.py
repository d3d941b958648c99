"""Deltas between shards, and manifests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.engine.servers.blobs import Blob, Corrupt, Manifest, Shard, apply, difference, signature


def shard(seed: int, words: int = 5000, kind: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, words, dtype=kind)


@pytest.mark.parametrize(("word", "kind"), [(2, np.uint16), (4, np.uint32)])
@given(places=st.sets(st.integers(0, 4999), max_size=400))
def test_a_delta_gives_back_every_byte(word, kind, places):
    old = shard(0, kind=kind)
    new = old.copy()
    new[sorted(places)] += 1  # wraps
    delta = difference(old.tobytes(), new.tobytes(), word=word)
    assert delta is not None and apply(old.tobytes(), delta) == new.tobytes()


def test_few_changes_make_a_small_delta():
    old = shard(0, 100_000)
    new = old.copy()
    new[::50] ^= 1  # 2 %, by one bit
    delta = difference(old.tobytes(), new.tobytes(), word=2)
    assert delta is not None and len(delta) < 0.01 * old.nbytes


def test_a_shard_that_is_new_throughout_or_of_another_size_has_no_delta():
    assert difference(shard(0).tobytes(), shard(1).tobytes(), word=2) is None
    assert difference(shard(0).tobytes(), shard(0, 5001).tobytes(), word=2) is None


def test_a_damaged_delta_or_another_shards_is_refused():
    old, new = shard(0), shard(0)
    new[7] ^= 3
    delta = difference(old.tobytes(), new.tobytes(), word=2)
    assert delta is not None
    for wrong in (delta[:-8], b"?" + delta[1:], delta[:20], b""):
        with pytest.raises(Corrupt):
            apply(old.tobytes(), wrong)
    with pytest.raises(Corrupt, match="another shard's"):
        apply(shard(0, 4000).tobytes(), delta)


def test_a_manifest_survives_its_text():
    whole, delta = Blob(sha256="a" * 64, size=3, sign="s"), Blob(sha256="b" * 64, size=1)
    shards = (Shard(whole=whole), Shard(whole=whole, delta=delta, base="c" * 64))
    one = Manifest(version=4, where="http://127.0.0.1:1", shards=shards)
    assert Manifest.read(one.text()) == one and one.size == 6


def test_a_signature_is_of_one_blob_and_one_key():
    assert len({signature(b"k", "a"), signature(b"k", "b"), signature(b"l", "a")}) == 3
