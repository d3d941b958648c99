"""The attention function that keeps rows apart which lie end to end, in any of transformers' decoders.

Registered as ``parl``, beside a mask function of that name: what a layer lets its positions see (causal, a sliding
window, chunks) arrives as a :class:`Seen`, and is worked out only where it is not plain causality. Row lengths
travel as the keyword ``packed``. Dropout is never applied: log-probs that differ from call to call would be of no use.

Shapes: B batch, T positions, H heads of queries, K of keys, Q width of a head's queries, V of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from model.blocks.attention import Shared, packed_attention
from model.hf.build import ATTENTION

_QUERIES = 512  # that are computed at a time under a window, with the keys that they reach


@dataclass(frozen=True, slots=True)
class Packed:
    """What a forward pass is about, handed to every layer: rows' ``lengths``, and the routes that they replay.

    With ``shared`` the tokens, and their routes, are those that are computed.
    """

    lengths: tuple[int, ...]
    routes_TLK: Tensor | None
    routers: tuple[Any, ...]  # of model.hf.routers, first to last
    shared: Shared | None = None
    starts_R: Tensor | None = None  # of model.blocks.attention.row_starts

    def replay(self) -> None:
        """Tell the routers."""
        for layer, router in enumerate(self.routers):
            router.routes_TK = None if self.routes_TLK is None else self.routes_TLK[:, layer]


@dataclass(eq=False)
class Seen:
    """Which keys a query sees. ``reach``: how far back at most; 0: all before it, in plain causality."""

    function: Callable[..., Tensor]
    reach: int
    device: torch.device
    _blocks: dict[tuple[range, range], Tensor] = field(default_factory=dict)

    def causal(self, length: int) -> bool:
        """Whether a row of ``length`` is masked by causality alone."""
        return not self.reach or length <= self.reach

    def of(self, queries: range, keys: range) -> Tensor:
        """[1, 1, queries, keys], True where the query sees the key; kept for the other layers."""
        if (queries, keys) not in self._blocks:
            zero = torch.zeros((), dtype=torch.long, device=self.device)
            rows, columns = (torch.tensor(places, device=self.device) for places in (queries, keys))
            self._blocks[queries, keys] = self.function(zero, zero, rows[:, None], columns[None, :])[None, None]
        return self._blocks[queries, keys]


def mask(
    *,
    q_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: Any = "cpu",
    **rest: Any,
) -> Seen:
    """What transformers calls to make a mask. ValueError for one that is no causal mask over whole rows."""
    if attention_mask is not None or use_vmap or "allow_is_causal_skip" not in rest:
        raise ValueError("attention that is not causal over whole rows")
    return Seen(mask_function, local_size or 0, torch.device(device))


def attention(
    module: nn.Module,
    query_BHTQ: Tensor,
    key_BKTQ: Tensor,
    value_BKTV: Tensor,
    attention_mask: Seen,
    scaling: float | None = None,
    *,
    packed: Packed | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[B, T, H, V]. Without ``packed`` each of B is a row.

    ``s_aux`` [H]: logits of a key without a value that every query sees (attention sinks).
    """
    if softcap is not None or position_bias is not None:
        raise NotImplementedError(f"{type(module).__name__} changes its attention logits by a cap or a bias")
    length = query_BHTQ.shape[2]
    lengths, shared = (packed.lengths, packed.shared) if packed else ((length,), None)
    if s_aux is None and all(attention_mask.causal(n) for n in lengths):
        if packed and len(query_BHTQ) == 1:
            query, key, value = (x[0].transpose(0, 1) for x in (query_BHTQ, key_BKTQ, value_BKTV))
            starts = packed.starts_R if query.shape[2] == value.shape[2] else None
            return packed_attention(query, key, value, lengths, scaling, shared, starts)[None], None
        out = F.scaled_dot_product_attention(
            query_BHTQ, key_BKTQ, value_BKTV, is_causal=True, scale=scaling, enable_gqa=_grouped(query_BHTQ, key_BKTQ)
        )
        return out.transpose(1, 2), None
    if shared is not None:
        raise NotImplementedError(f"{type(module).__name__}: rows share no beginnings under a window or with sinks")
    scale = query_BHTQ.shape[3] ** -0.5 if scaling is None else scaling
    if s_aux is not None:
        query_BHTQ, key_BKTQ, value_BKTV = _with_room(query_BHTQ, key_BKTQ, value_BKTV)
    outs, start = [], 0
    for n in lengths:
        for queries, keys in _blocks(start, n, 0 if attention_mask.causal(n) else attention_mask.reach):
            query = query_BHTQ[:, :, queries.start : queries.stop]
            key, value = (x[:, :, keys.start : keys.stop] for x in (key_BKTQ, value_BKTV))
            outs.append(_masked(query, key, value, attention_mask.of(queries, keys), scale, s_aux))
        start += n
    out = torch.cat(outs, dim=2)
    return (out if s_aux is None else out[..., :-1]).transpose(1, 2), None


def _grouped(query_BHTQ: Tensor, key_BKTQ: Tensor) -> bool:
    return query_BHTQ.shape[1] != key_BKTQ.shape[1]


def _blocks(start: int, length: int, reach: int) -> Iterator[tuple[range, range]]:
    """Queries of a row and the keys that they may see; ``reach`` 0: the whole row at once."""
    size = _QUERIES if reach else length
    for begin in range(start, start + length, size):
        end = min(begin + size, start + length)
        yield range(begin, end), range(max(start, begin - reach + 1) if reach else start, end)


def _with_room(query_BHTQ: Tensor, key_BKTQ: Tensor, value_BKTV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An element more in each vector, 1 in queries and 0 in keys and values, which a head of its own has each."""
    groups = query_BHTQ.shape[1] // key_BKTQ.shape[1]
    key_BHTQ, value_BHTV = (x.repeat_interleave(groups, dim=1) for x in (key_BKTQ, value_BKTV))
    return F.pad(query_BHTQ, (0, 1), value=1.0), F.pad(key_BHTQ, (0, 1)), F.pad(value_BHTV, (0, 1))


def _masked(query: Tensor, key: Tensor, value: Tensor, seen_TS: Tensor, scale: float, sinks_H: Tensor | None) -> Tensor:
    """Attention under a mask, with a sink: a last key whose logit is the head's own and whose value is 0.

    That logit stands in the sink's last element, which the queries' 1 multiplies: no bias of heads × T × T is made.
    """
    if sinks_H is None:
        grouped = _grouped(query, key)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen_TS, scale=scale, enable_gqa=grouped)
    sink = F.pad((sinks_H / scale).to(key.dtype)[None, :, None, None], (key.shape[3] - 1, 0)).expand(
        len(key), -1, -1, -1
    )
    key, value = torch.cat([key, sink], dim=2), F.pad(value, (0, 0, 0, 1))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=F.pad(seen_TS, (0, 1), value=True), scale=scale)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, mask)
