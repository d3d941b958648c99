"""Micro-batches: whole rows packed without padding, with the fields that a loss reads under the mask.

Shapes: B = 1, T positions of all rows, L MoE layers, K experts per token, M trained tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.blocks.attention import Shared
from model.blocks.device import sent
from model.family import Pictures
from model.policy import trained_places
from parl.learn.rows import Row

HOST = torch.device("cpu")


@dataclass(slots=True, kw_only=True)
class TextRow:
    """One demonstration trace: tokens int32 [T] and the loss weight float32 [T] of each.

    ``media``: its pictures, (position of the first placeholder, PNG file).
    """

    tokens: np.ndarray
    weights: np.ndarray
    media: tuple[tuple[int, bytes], ...] = ()
    routes: None = None  # a demonstration has none


@dataclass(slots=True)
class Batch:
    """Packed rows of ``lengths``, for a policy on ``device``. Routes are contiguous per layer.

    Which tokens are trained is known on the host, so that nothing here waits for a GPU: ``places_M`` are their indices
    in T, ``counts`` how many each row has.
    """

    rows: list[Row] | list[TextRow]
    lengths: list[int]
    tokens_BT: Tensor
    places_M: Tensor
    counts: list[int]
    routes_BTLK: Tensor | None
    media: Any = None
    shared: Shared | None = None
    device: torch.device = HOST

    @property
    def inputs(self) -> dict[str, Any]:
        """The policy's inputs for this batch, on its device."""
        shared = self.shared
        if shared is not None:
            shared = replace(shared, place_T=self._sent(shared.place_T), first_U=self._sent(shared.first_U))
        return {
            "tokens_BT": self._sent(self.tokens_BT),
            "places_M": self._sent(self.places_M),
            "routes_BTLK": None if self.routes_BTLK is None else self._sent(self.routes_BTLK),
            "media": self.media,
            "lengths": self.lengths,
            "shared": shared,
        }

    def gather(self, name: str) -> Tensor:
        """Field ``name`` of every row at the trained positions, float32 [M]."""
        values = np.concatenate([getattr(row, name) for row in self.rows]).astype(np.float32, copy=False)
        return self._sent(torch.from_numpy(values)[self.places_M])

    def _sent(self, tensor: Tensor) -> Tensor:
        return sent(tensor, self.device)

    def by_row(self, values_M: Tensor) -> list[Tensor]:
        """``values_M`` split by rows."""
        return list(values_M.split(self.counts))


def micro_batches(rows: Sequence, limit: int, *, share: bool = False) -> list[list]:
    """Rows in groups of at most ``limit`` tokens, or of a single longer row: first fit, by falling length.

    ``share``: a common prefix counts once, and rows with a common prefix are neighbours.
    """
    if share:
        return _alike(rows, limit)
    groups: list[list] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda r: -len(r.tokens)):
        length = len(row.tokens)
        place = next((i for i, left in enumerate(room) if length <= left), None)
        if place is None:
            place = len(groups)
            groups.append([])
            room.append(limit)
        groups[place].append(row)
        room[place] -= length
    return groups


def _alike(rows: Sequence, limit: int) -> list[list]:
    groups: list[list] = []
    held = limit
    for row in sorted(rows, key=lambda r: r.tokens.astype(">i4").tobytes()):  # in numeric order
        length = len(row.tokens)
        new = length - (_common(groups[-1][-1], row) if groups else 0)
        if held + new > limit:
            groups.append([])
            held, new = 0, length
        groups[-1].append(row)
        held += new
    return groups


def _common(one: Row | TextRow, other: Row | TextRow) -> int:
    """Length of the prefix at which two rows compute the same."""
    if one.media or other.media:
        return 0
    length = min(len(one.tokens), len(other.tokens))
    differ = one.tokens[:length] != other.tokens[:length]
    if one.routes is not None and other.routes is not None:
        differ = differ | (one.routes[:length] != other.routes[:length]).any((1, 2))
    return int(differ.argmax()) if differ.any() else length


def _shared(rows: list) -> Shared | None:
    """The prefix that each row shares with the one before; None without any."""
    own = [0, *(_common(*pair) for pair in pairwise(rows))]
    if not any(own):
        return None
    places: list[np.ndarray] = []
    firsts: list[np.ndarray] = []
    begin = tokens = 0
    for row, count in zip(rows, own, strict=True):
        new = len(row.tokens) - count
        before = places[-1][:count] if places else np.empty(0, np.int64)
        places.append(np.concatenate([before, np.arange(tokens, tokens + new)]))
        firsts.append(np.arange(begin + count, begin + len(row.tokens)))
        begin, tokens = begin + len(row.tokens), tokens + new
    place, first = (torch.from_numpy(np.concatenate(parts)) for parts in (places, firsts))
    return Shared(own=tuple(own), place_T=place, first_U=first)


def lay(
    rows: list,
    mask: Callable[[Row | TextRow], np.ndarray],
    pictures: Pictures | None = None,
    *,
    share: bool = False,
    device: torch.device = HOST,
) -> Batch:
    """``rows`` packed; an MoE policy's rows must all have routes, or none. ValueError if a first token is trained.

    ``pictures``: how pictures are cut; ValueError if rows have some and the policy has no vision. ``share``:
    compute common prefixes of neighbours once (``Policy.shares``).
    """
    lengths = [len(row.tokens) for row in rows]
    tokens = torch.from_numpy(np.concatenate([row.tokens for row in rows]).astype(np.int64))[None]
    masks = [mask(row) for row in rows]
    places, counts = trained_places(torch.from_numpy(np.concatenate(masks)), lengths), [int(m.sum()) for m in masks]
    routes = None
    if rows[0].routes is not None:
        token_major = torch.from_numpy(np.concatenate([row.routes for row in rows]))
        routes = token_major.transpose(0, 1).contiguous().transpose(0, 1)[None]
    shared = _shared(rows) if share else None
    return Batch(rows, lengths, tokens, places, counts, routes, _media(rows, lengths, pictures), shared, device)


def _media(rows: list, lengths: list[int], pictures: Pictures | None) -> Any:
    """The pictures of ``rows`` and their positions, without placeholders that the policy wrote."""
    begins = [0, *accumulate(lengths)]
    shown = [(begin + at, png) for begin, row in zip(begins, rows, strict=False) for at, png in row.media]
    if not shown:
        return None
    if pictures is None:
        raise ValueError("a row shows pictures, but the model has no vision section")
    places = torch.zeros(1, begins[-1], dtype=torch.bool)
    for start, png in shown:
        places[0, start : start + pictures.tokens(png)] = True
    return pictures.batch([png for _, png in shown], places)
