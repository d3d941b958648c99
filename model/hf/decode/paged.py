"""A decoder for any policy of the family: transformers' own layers over a paged cache of keys and values. In PyTorch.

Exact and batch-invariant (:class:`model.decoder.Decoder`): layers always see ``_AT_ONCE`` tokens, padded, because
PyTorch's products have the same bits for one number of rows; each token attends by itself. Where transformers computes
the experts, whose rows are as many as the batch has for them, layers see a token at a time.

Shapes: M tokens at once, H heads of queries, K of keys, Q width of a head's queries, V of its values, C positions in
the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from model.arrays import fill
from model.decoder import PAGE, Features, NotFinite, Weights, check_weights, sampled, shapes_of
from model.hf.experts import fused
from model.hf.policy import HfPolicy, stacks

_AT_ONCE = 16
_NAME = "parl_paged"


@dataclass
class _Fed:
    """What a pass is about, handed to every layer as ``packed``."""

    slots: list[Tensor]  # of each token's positions, its own last; fewer than M where tokens are padding
    cache: dict[int, tuple[Tensor, Tensor]]  # by layer: keys and values of all positions
    positions: int  # of the cache


def _attend(
    module: Any,
    query_1HMQ: Tensor,
    key_1KMQ: Tensor,
    value_1KMV: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    *,
    packed: _Fed,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[1, M, H, V]; writes the tokens' keys and values before."""
    heads, fed = query_1HMQ.shape[1:3]
    new_key, new_value = key_1KMQ[0].transpose(0, 1), value_1KMV[0].transpose(0, 1)
    if module.layer_idx not in packed.cache:
        keys, values = (new.new_zeros(packed.positions, *new.shape[1:]) for new in (new_key, new_value))
        packed.cache[module.layer_idx] = keys, values
    keys_CKQ, values_CKV = packed.cache[module.layer_idx]
    out = query_1HMQ.new_zeros(1, fed, heads, values_CKV.shape[-1])
    for token, slots in enumerate(packed.slots):
        keys_CKQ[slots[-1]], values_CKV[slots[-1]] = new_key[token], new_value[token]
    for token, slots in enumerate(packed.slots):
        seen = slots[-sliding_window:] if sliding_window else slots
        key, value = (cached[seen].transpose(0, 1)[None] for cached in (keys_CKQ, values_CKV))
        bias = None
        if s_aux is not None:  # a last key whose logit is the head's own and whose value is 0
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
            bias = F.pad(query_1HMQ.new_zeros(1, heads, 1, len(seen)), (0, 1))
            bias[..., -1] = s_aux[None, :, None].to(bias.dtype)
        query = query_1HMQ[:, :, token : token + 1]
        grouped = key.shape[1] != heads
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling, enable_gqa=grouped)
        out[:, token] = mixed[:, :, 0]
    return out, None


AttentionInterface.register(_NAME, _attend)


class PagedDecoder:
    """See :class:`model.decoder.Decoder`. Takes over ``policy``, which computes nothing else from here on.

    ValueError for a policy whose layers attend within chunks.
    """

    def __init__(self, policy: HfPolicy, pages: int) -> None:
        config = policy.causal.config
        if getattr(config, "attention_chunk_size", None):
            raise ValueError(f"model_type={config.model_type!r} attends within chunks: no decoder serves that")
        policy.causal.set_attn_implementation(_NAME)
        self._policy = policy.eval()
        self._shapes = shapes_of(policy)
        self._at_once = _AT_ONCE if all(fused(module) for _, module in stacks(policy)) else 1
        self._pages, self._cache = pages, {}
        routes = policy.config.routes
        layers, chosen = (routes.layers, routes.chosen) if routes else (0, 0)
        self.routes = np.full((pages, PAGE, layers, chosen), -1, np.int16)
        self._written = np.empty(0, np.int64)  # where in the cache the tokens of this pass lie
        for layer, router in enumerate(policy.routers()):
            router.register_forward_hook(partial(self._record, layer))

    def _record(self, layer: int, router: nn.Module, inputs: Any, choice: Any) -> None:
        ids = choice.ids[: len(self._written)].numpy()
        self.routes.reshape(-1, *self.routes.shape[2:])[self._written, layer] = ids

    def load(self, weights: Weights) -> None:
        """See :meth:`model.decoder.Decoder.load`."""
        check_weights(self._shapes, weights)
        fill(self._policy, weights)
        self._policy.weights_changed()

    @torch.no_grad()
    def forward(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        tables: np.ndarray,
        rows: np.ndarray,
        features: Features | None = None,
    ) -> np.ndarray:
        """See :meth:`model.decoder.Decoder.forward`; ValueError for features."""
        if features is not None:
            raise ValueError("this decoder takes no pictures")
        slots = []
        for position, sequence in zip(positions, sequences, strict=True):
            places = np.arange(position + 1)
            slots.append(torch.from_numpy(tables[sequence][places // PAGE].astype(np.int64) * PAGE + places % PAGE))
        hidden = [
            self._pass(tokens[start:end], positions[start:end], slots[start:end])
            for start in range(0, len(tokens), self._at_once)
            for end in (min(start + self._at_once, len(tokens)),)
        ]
        logits = self._head(torch.cat(hidden)[torch.from_numpy(rows).long()])
        if not np.isfinite(logits).all():
            for cached in (tensor for pair in self._cache.values() for tensor in pair):
                cached.zero_()
            raise NotFinite("the policy produced a NaN or infinite logit")
        return logits

    def _pass(self, tokens: np.ndarray, positions: np.ndarray, slots: list[Tensor]) -> Tensor:
        """Hidden states [len(tokens), D]."""
        self._written = np.array([places[-1] for places in slots], np.int64)
        padding = self._at_once - len(tokens)
        ids, places = (torch.from_numpy(np.pad(x, (0, padding)))[None].long() for x in (tokens, positions))
        fed = _Fed(slots, self._cache, self._pages * PAGE)
        base = self._policy.causal.base_model
        out = base(input_ids=ids, position_ids=places, use_cache=False, packed=fed)
        return out.last_hidden_state[0, : len(tokens)]

    def _head(self, hidden_RD: Tensor) -> np.ndarray:
        found = []
        for part in hidden_RD.split(self._at_once):
            padded = F.pad(part, (0, 0, 0, self._at_once - len(part)))
            found.append(self._policy.lm_head(padded)[: len(part)].float())
        return torch.cat(found).numpy() if found else np.empty((0, self._policy.config.vocab_size), np.float32)

    def sample(
        self,
        logits: np.ndarray,
        temperature: np.ndarray,
        keys: np.ndarray,
        positions: np.ndarray,
        top_p: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :func:`model.decoder.sampled`."""
        return sampled(logits, temperature, keys, positions, top_p)
