"""Weights from the learner to the engines: packed once per version, sent to every replica of a pool.

The policy pool gets each version; the frozen pool keeps the starting policy, or a refreshed one. Embedded
engines get arrays through Ray's store, servers a folder or a manifest of shards to fetch
(``parl.serve.server_weights``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ray

from model.arrays import Sent
from model.decoder import Weights
from model.lora import is_adapters, merged
from parl.collect.pools import Refreshed, RolloutSide, engine_kinds, subagents
from parl.serve.server_weights import Deliveries
from rollouts.engine.base import Update

SYNC_S = 120.0  # deadline of one update, unless servers need more


class Packed(NamedTuple):
    """One version for a pool. Arrays travel beside the update, as references that Ray resolves."""

    update: Update
    weights: Any = None
    base: Any = None


class PoolWeights:
    """The weights of each pool. ``start``: the starting policy; ``kept``: folder for refreshed weights."""

    def __init__(self, side: RolloutSide, tokenizer: Path, start: Weights, kept: Path | None = None) -> None:
        rollouts = side.rollouts
        self._rollouts, self._kinds = rollouts, engine_kinds(rollouts)
        self._deliveries = Deliveries(side.served, side.model.shape, tokenizer, rollouts.http)
        servers = any(kind.servers for kind in self._kinds.values())
        self._sync_s = SYNC_S + (rollouts.http.update_s if servers else 0)
        self._start_weights = start  # base of adapters, merged here or in the engines
        self._start_ref = ray.put(Sent(start)) if side.adapters else None
        self.subagent_model, frozen = subagents(rollouts, side.model, str(tokenizer.resolve()), start)
        self._packed = {"frozen": self._pack("frozen", 0, frozen)}
        self._refreshed = Refreshed(rollouts.refresh_every, side.back, kept)

    def close(self) -> None:
        """Servers fetch no more versions."""
        self._deliveries.close()

    def forget(self) -> None:
        """Another policy is served next: refreshed sub-agents become that one's."""
        self._refreshed.forget()

    def take(self, weights: Weights, version: int) -> bool:
        """Set ``weights`` as policy ``version``; returns whether the frozen pool has new ones too."""
        if is_adapters(weights) and self._kinds["policy"].adapters:
            self._packed["policy"] = Packed(Update(version=version), ray.put(Sent(weights)), self._start_ref)
        else:
            self._packed["policy"] = self._pack("policy", version, merged(self._start_weights, weights))
        if self._rollouts.subagent_pool != "refreshed":
            return False
        due = self._refreshed.due(version, merged(self._start_weights, weights))
        if due is not None:
            self._packed["frozen"] = self._pack("frozen", *due)
        return due is not None

    def send(self, pool: str, replicas: Sequence[Any], *, in_flight: bool = False) -> None:
        """Send the packed weights of ``pool``, if any, to ``replicas``; RuntimeError for another version."""
        packed = self._packed.get(pool)
        if packed is None:
            return
        update = replace(packed.update, in_flight=in_flight)
        calls = [replica.update.remote(update, packed.weights, packed.base) for replica in replicas]
        served = ray.get(calls, timeout=self._sync_s)
        if any(answer != update.version for answer in served):
            raise RuntimeError(f"the {pool} pool serves versions {served}, not {update.version}")

    def _pack(self, pool: str, version: int, weights: Weights) -> Packed:
        """The weights in Ray's store, or in a folder for servers."""
        if self._kinds[pool].servers:
            return Packed(Update(version=version, delivery=self._deliveries.write(pool, version, weights)))
        return Packed(Update(version=version), ray.put(Sent(weights)))
