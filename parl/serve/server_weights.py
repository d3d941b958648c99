"""Weights for inference servers: each version as a folder, and the probe to verify it.

The folder is written by the family's ``export``. Matrices are float32; the server rounds them to its own
dtype. Versions that servers fetch (``rollouts.http.weights: pull``) have the policy's dtype, in smaller shards.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from model.decoder import Weights
from model.family import Shape, family_of
from model.policy import Policy
from model.policy_files import with_weights
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer
from parl.serve.published import Published
from rollouts.config import HttpConfig
from rollouts.engine.base import Delivery

_BUCKET_BYTES = 10**9  # of a shard: what a server holds besides the model during an update
_PULLED_BYTES = 256 * 10**6  # of a shard that servers fetch: several are in flight, and deltas are made in memory
_PROBE_TOKENS = 256
_WORD = {"float32": 4, "bfloat16": 2}  # bytes of a number
_KEPT = 2  # folders per pool: the served one, and the one before while a server still reads it


class Deliveries:
    """Writes versions below ``folder``, and computes their probes.

    Trainer and servers share the folder, unless versions are offered to them (``http.weights: pull``).
    """

    def __init__(self, folder: Path, model: Shape, tokenizer: Path, http: HttpConfig | None = None) -> None:
        self._folder, self._model = folder.resolve(), model
        self._tokenizer = load_tokenizer(tokenizer)
        self._written: dict[str, list[Path]] = {}
        offered = http is not None and bool(http.urls or http.urls_file) and http.weights == "pull"
        self._published = Published(http.publish, self._folder / "deltas") if offered and http else None

    def close(self) -> None:
        """No more versions are fetched."""
        if self._published is not None:
            self._published.close()

    def write(self, pool: str, version: int, weights: Weights) -> Delivery:
        """Write ``weights`` as ``version`` of ``pool``; deletes older folders of the pool."""
        out = self._folder / f"{pool}-{version:06d}"
        partial = out.with_suffix(".partial")
        for stale in (partial, out):
            shutil.rmtree(stale, ignore_errors=True)
        policy = with_weights(self._model, weights)
        probe = probe_tokens(self._model, self._tokenizer)
        logprobs = probe_logprobs(policy, probe)
        kind = self._model.weights_dtype
        how = {"dtype": kind, "shard_bytes": _PULLED_BYTES} if self._published else {"shard_bytes": _BUCKET_BYTES}
        family_of(self._model).export(policy, self._tokenizer, partial, server=True, **how)
        partial.rename(out)
        written = self._written.setdefault(pool, [])
        written.append(out)
        while len(written) > _KEPT:
            shutil.rmtree(written.pop(0), ignore_errors=True)
        manifest = None
        if self._published is not None:
            manifest = self._published.publish(pool, version, out, word=_WORD[kind])
        return Delivery(version=version, folder=out, probe=probe, logprobs=logprobs, manifest=manifest)


def probe_tokens(model: Shape, tokenizer: Tokenizer) -> list[int]:
    """The fixed probe: random plain tokens, so that many experts take part."""
    ordinary = sorted(set(range(tokenizer.vocab_size)) - set(tokenizer.special.values()))
    count = min(_PROBE_TOKENS, model.max_position_embeddings // 2)
    return [int(token) for token in np.random.default_rng(0).choice(ordinary, count)]


@torch.no_grad()
def probe_logprobs(policy: Policy, tokens: list[int]) -> list[float]:
    """The policy's own log-probs of all ``tokens`` except the first."""
    ids = torch.tensor([tokens])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 0] = False
    return policy(ids, mask)[0].tolist()
