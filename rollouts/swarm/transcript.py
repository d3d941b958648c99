"""One agent's append-only token stream. Each segment is rendered once; sampled tokens stay as sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from model.chat.base import ChatFormat, Piece
from model.family import Pictures
from rollouts.engine.base import Completion
from rollouts.episode import Trace


class Transcript:
    """Appends to ``trace``: tokens with mask, log-probs, policy versions and routes, all of equal length.

    ``media``: how pictures are cut for the policy; None without vision.
    """

    def __init__(self, trace: Trace, chat: ChatFormat, media: Pictures | None = None) -> None:
        self.trace = trace
        self._media = media
        self._chat = chat
        self._routes: list[np.ndarray] = []
        self._routed = 0
        self._base = trace.cuts[-1] if trace.cuts else 0  # start of the current context
        self._resumed = trace.routes is not None  # a resumed trace
        if trace.routes is not None:
            known = np.flatnonzero((trace.routes >= 0).any(axis=(1, 2)))
            self._routed = max(int(known[-1]) + 1 if len(known) else 0, self._base)
            self._routes.append(trace.routes[: self._routed])

    def observe(self, pieces: Iterable[Piece], images: Sequence[bytes] = (), *, after: Sequence[int] = ()) -> None:
        """Append what the agent reads: opening, tool results. Text in it never becomes a control token.

        ``after``: ids that come before; they must end in a control token, or the seam would be tokenised
        differently. ``images`` (PNG) replace the placeholders in order. ValueError without vision.
        """
        ids = self._chat.encode(pieces)
        if images:
            ids = self._with_pictures(ids, images)
        if after:
            ids = [*after, *ids]
        self._append(ids, sampled=False, logprobs=[0.0] * len(ids), versions=[-1] * len(ids))

    def copied(self, ids: Sequence[int]) -> None:
        """Append tokens of another trace, as context."""
        self._append(list(ids), sampled=False, logprobs=[0.0] * len(ids), versions=[-1] * len(ids))

    def _with_pictures(self, ids: list[int], images: Sequence[bytes]) -> list[int]:
        """``ids`` with one placeholder per token of each picture; records their positions in the trace."""
        if self._media is None:
            raise ValueError(f"agent {self.trace.agent_id}: a tool showed a picture to a policy without model.vision")
        placeholder = self._chat.picture_id
        if ids.count(placeholder) != len(images):
            raise ValueError(f"{ids.count(placeholder)} placeholders for {len(images)} pictures: one each")
        shown = iter(images)
        out: list[int] = []
        for token in ids:
            if token == placeholder:
                self.trace.media_at.append(len(self.trace.tokens) + len(out))
                out += [token] * self._media.tokens(next(shown))
            else:
                out.append(token)
        return out

    def sampled(self, completion: Completion) -> tuple[int, int]:
        """Append a completion; returns its span of positions.

        Routes of known positions are dropped: if a trace continues in a new session, they come from later
        weights, and the tokens were sampled with earlier ones.
        """
        start = len(self.trace.tokens)
        versions = completion.versions or [completion.policy_version] * len(completion.tokens)
        self._append(completion.tokens, sampled=True, logprobs=completion.logprobs, versions=versions)
        if completion.routes is not None:
            known = self._routed - completion.routes_start - self._base
            if known < 0 or (known > 0 and not self._resumed):
                where = f"position {completion.routes_start}, expected {self._routed}"
                raise ValueError(f"agent {self.trace.agent_id}: routes begin at {where}; router replay would be wrong")
            self._routes.append(completion.routes[known:])
            self._routed += len(completion.routes[known:])
        return start, len(self.trace.tokens)

    @property
    def unfinished(self) -> bool:
        """Whether the last turn was interrupted."""
        return bool(self.trace.mask) and self.trace.mask[-1]

    @property
    def context(self) -> list[int]:
        """The token ids of the agent's context."""
        return self.trace.tokens[self._base :] if self._base else self.trace.tokens

    def restart(self, ids: list[int]) -> None:
        """Start a new context with ``ids``. ValueError after pictures, whose positions would be lost."""
        if self.trace.media_at:
            raise ValueError(f"agent {self.trace.agent_id}: a context with pictures cannot be managed (context.policy)")
        self._pad()
        self._base = len(self.trace.tokens)
        self.trace.cuts.append(self._base)
        self._append(ids, sampled=False, logprobs=[0.0] * len(ids), versions=[-1] * len(ids))

    def close(self) -> None:
        """Assemble the routes; positions that were never fed (a context's last token) get -1."""
        if self._routes:
            self.trace.routes = np.concatenate([*self._routes, self._unfed()])

    def _pad(self) -> None:
        if self._routes:
            self._routes.append(self._unfed())
            self._routed = len(self.trace.tokens)

    def _unfed(self) -> np.ndarray:
        missing = len(self.trace.tokens) - self._routed
        return np.full((missing, *self._routes[0].shape[1:]), -1, np.int16)

    def _append(self, ids: list[int], *, sampled: bool, logprobs: list[float], versions: Sequence[int]) -> None:
        trace = self.trace
        trace.tokens += ids
        trace.mask += [sampled] * len(ids)
        trace.logprobs += logprobs
        trace.versions += versions
