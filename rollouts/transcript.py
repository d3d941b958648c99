"""One agent's append-only token stream. Each segment is rendered once; sampled tokens stay exactly as sampled."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from model.chat import Piece
from model.tokenizer import Tokenizer
from rollouts.engine.base import Completion
from rollouts.episode import Trace


class Transcript:
    """Grows ``trace``: tokens with their mask, log-probs, policy versions and routes, all of equal length."""

    def __init__(self, trace: Trace, tokenizer: Tokenizer) -> None:
        self.trace = trace
        self._tokenizer = tokenizer
        self._routes: list[np.ndarray] = []
        self._routed = 0

    def observe(self, pieces: Iterable[Piece]) -> None:
        """Append what the agent reads: opening, tool results. Text in it never becomes a control token."""
        ids = self._tokenizer.encode_segments(pieces)
        self._append(ids, sampled=False, logprobs=[0.0] * len(ids), version=-1)

    def sampled(self, completion: Completion) -> tuple[int, int]:
        """Append what the agent wrote; returns its span of positions."""
        start = len(self.trace.tokens)
        self._append(completion.tokens, sampled=True, logprobs=completion.logprobs, version=completion.policy_version)
        if completion.routes is not None:
            if completion.routes_start != self._routed:
                where = f"position {completion.routes_start}, expected {self._routed}"
                raise ValueError(f"agent {self.trace.agent_id}: routes begin at {where}; router replay would be wrong")
            self._routes.append(completion.routes)
            self._routed += len(completion.routes)
        return start, len(self.trace.tokens)

    def close(self) -> None:
        """Put the routes together; the positions that were never fed (the last token) get -1 = route live."""
        if self._routes:
            missing = len(self.trace.tokens) - self._routed
            tail = np.full((missing, *self._routes[0].shape[1:]), -1, np.int16)
            self.trace.routes = np.concatenate([*self._routes, tail])

    def _append(self, ids: list[int], *, sampled: bool, logprobs: list[float], version: int) -> None:
        trace = self.trace
        trace.tokens += ids
        trace.mask += [sampled] * len(ids)
        trace.logprobs += logprobs
        trace.versions += [version] * len(ids)
