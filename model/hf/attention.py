"""The attention function that keeps rows apart which lie end to end, in any of transformers' decoders.

Registered as ``parl``, beside a mask function of that name: what a layer lets its positions see (causal, a sliding
window, chunks) arrives as a :class:`Seen`, and is worked out only where it is not plain causality. Row lengths
travel as the keyword ``packed``. Dropout is never applied: log-probs that differ from call to call would be of no use.

Shapes: B batch, T positions, H heads of queries, K of keys, Q width of a head's queries, V of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from model.blocks.attention import Shared, packed_attention
from model.hf.build import ATTENTION


@dataclass(frozen=True, slots=True)
class Packed:
    """What a forward pass is about, handed to every layer: rows' ``lengths``, and the routes that they replay.

    With ``shared`` the tokens, and their routes, are those that are computed.
    """

    lengths: tuple[int, ...]
    routes_TLK: Tensor | None
    routers: tuple[Any, ...]  # of model.hf.routers, first to last
    shared: Shared | None = None

    def replay(self) -> None:
        """Tell the routers."""
        for layer, router in enumerate(self.routers):
            router.routes_TK = None if self.routes_TLK is None else self.routes_TLK[:, layer]


@dataclass
class Seen:
    """Which keys a query sees. ``reach``: how far back at most; 0: all before it, in plain causality."""

    function: Callable[..., Tensor]
    reach: int
    device: torch.device
    _rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def causal(self, length: int) -> bool:
        """Whether a row of ``length`` is masked by causality alone."""
        return not self.reach or length <= self.reach

    def of(self, start: int, end: int) -> Tensor:
        """[1, 1, end - start, end - start], True where the query (first) sees the key; kept for the other layers."""
        if (start, end) not in self._rows:
            zero, places = torch.zeros((), dtype=torch.long, device=self.device), torch.arange(start, end)
            places = places.to(self.device)
            self._rows[start, end] = self.function(zero, zero, places[:, None], places[None, :])[None, None]
        return self._rows[start, end]


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
    attention_mask: Seen | None = None,
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
    seen = attention_mask
    if s_aux is None and (seen is None or all(seen.causal(n) for n in lengths)):
        if packed and len(query_BHTQ) == 1:
            query, key, value = (x[0].transpose(0, 1) for x in (query_BHTQ, key_BKTQ, value_BKTV))
            return packed_attention(query, key, value, lengths, scaling, shared)[None], None
        out = F.scaled_dot_product_attention(
            query_BHTQ, key_BKTQ, value_BKTV, is_causal=True, scale=scaling, enable_gqa=_grouped(query_BHTQ, key_BKTQ)
        )
        return out.transpose(1, 2), None
    if shared is not None:
        raise NotImplementedError(f"{type(module).__name__}: rows share no beginnings under a window or with sinks")
    outs, start = [], 0
    for n in lengths:
        part = slice(start, start + n)
        wanted = _causal(n, query_BHTQ.device) if seen is None or seen.causal(n) else seen.of(start, start + n)
        outs.append(_masked(*(x[:, :, part] for x in (query_BHTQ, key_BKTQ, value_BKTV)), wanted, scaling, s_aux))
        start += n
    return torch.cat(outs, dim=2).transpose(1, 2), None


def _grouped(query_BHTQ: Tensor, key_BKTQ: Tensor) -> bool:
    return query_BHTQ.shape[1] != key_BKTQ.shape[1]


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def _masked(
    query: Tensor, key: Tensor, value: Tensor, seen_TT: Tensor, scale: float | None, sinks_H: Tensor | None
) -> Tensor:
    """Attention under a mask, with a sink: a last key whose logit is the head's own and whose value is 0."""
    grouped = _grouped(query, key)
    if sinks_H is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen_TT, scale=scale, enable_gqa=grouped)
    key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    bias = torch.zeros(seen_TT.shape, dtype=query.dtype, device=query.device).masked_fill(~seen_TT, -torch.inf)
    sink = sinks_H.to(query.dtype)[None, :, None, None].expand(len(query), -1, query.shape[2], 1)
    bias = torch.cat([bias.expand(*sink.shape[:3], -1), sink], dim=-1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=grouped)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, mask)
