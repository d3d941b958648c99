"""The decoder contract: feed any mix of tokens, get logits, sample. Types and checks. No torch.

The cache is a pool of pages of 16 positions. ``tables`` [S, M] lists each sequence's pages in order.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from model.arrays import to_numpy

PAGE = 16
Weights = dict[str, np.ndarray]  # float32, or bfloat16 as :data:`model.arrays.BFLOAT16`
Shapes = dict[str, tuple[int, ...]]
Features = tuple[np.ndarray, np.ndarray]  # batch rows int32 [F], and their values instead of embeddings, [F, D]


class NotFinite(FloatingPointError):
    """A logit was NaN or infinite: the weights are broken."""


class Decoder(Protocol):
    """A batch-invariant decoder with its pages as only state.

    ``routes`` int16 [pages, 16, L, K]: the experts of each cached position; L = 0 without routed layers.
    """

    routes: np.ndarray

    def load(self, weights: Weights) -> None:
        """Take new weights; the cache's contents become stale. Raises ValueError, NotFinite."""
        ...

    def forward(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        tables: np.ndarray,
        rows: np.ndarray,
        features: Features | None = None,
    ) -> np.ndarray:
        """Feed T tokens (int32 each: id, position, sequence); logits float32 [len(rows), V] of ``rows``.

        A sequence's tokens must follow its cached ones in order. ``features`` replace the embeddings of their
        rows. Raises NotFinite.
        """
        ...

    def sample(
        self,
        logits: np.ndarray,
        temperature: np.ndarray,
        keys: np.ndarray,
        positions: np.ndarray,
        top_p: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(token ids int32, log-probs float32) per row; noise depends on (key uint64, position int32) only.

        ``top_p`` float32: sample among the likeliest tokens that together reach it; None or 1: all. Log-probs
        are those before the cut.
        """
        ...


def export_weights(model: Any) -> Weights:
    """A policy's state dict as arrays (copies) by name.

    Parameters have the dtype of the shape (``weights_dtype``). Buffers, such as routers' correction biases,
    are float32: their updates are too small for bfloat16.
    """
    import torch

    kinds = dict.fromkeys(dict(model.named_parameters()), getattr(torch, model.config.weights_dtype))
    return {
        name: to_numpy(tensor.detach().to("cpu", kinds.get(name, torch.float32), copy=True))
        for name, tensor in model.state_dict().items()
    }


def shapes_of(model: Any) -> Shapes:
    """Name and shape of every entry of a torch module's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_weights(shapes: Shapes, weights: Weights) -> None:
    """ValueError unless ``weights`` are a whole policy of these ``shapes``; NotFinite if one is not finite."""
    odd = sorted(shapes.keys() ^ weights.keys())
    if odd:
        raise ValueError(f"not the weights of this model: {', '.join(odd[:3])} are missing or unknown")
    for name, array in weights.items():
        if array.shape != shapes[name]:
            raise ValueError(f"weight {name} has shape {array.shape}, this model's is {shapes[name]}")
        check_finite(name, array)


def check_finite(name: str, array: np.ndarray) -> None:
    """NotFinite unless all numbers of the weight ``name`` are finite."""
    if not np.isfinite(array).all():
        raise NotFinite(f"weight {name} holds NaN or infinity")


# ---------------------------------------------------------------- sampling


def sampled(
    logits: np.ndarray,
    temperature: np.ndarray,
    keys: np.ndarray,
    positions: np.ndarray,
    top_p: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """:meth:`Decoder.sample` in numpy, in float64: the specification for decoders."""
    tokens, logprobs = [], []
    top_p = np.ones(len(logits), np.float32) if top_p is None else top_p
    for row, heat, key, position, share in zip(logits, temperature, keys, positions, top_p, strict=True):
        scaled = row.astype(np.float64) / (heat or 1.0)
        weights = np.exp(scaled - scaled.max())
        total = weights.sum()
        cumulative = np.cumsum(weights if share >= 1 else _nucleus(weights, float(share)))
        noise = _mix(int(key) ^ _mix(int(position))) >> 11
        pick = int(np.searchsorted(cumulative, noise * 2.0**-53 * cumulative[-1], side="right"))
        pick = int(row.argmax()) if heat == 0 else min(pick, len(row) - 1)
        tokens.append(pick)
        logprobs.append(np.log(weights[pick] / total))
    return np.array(tokens, np.int32), np.array(logprobs, np.float32)


def _nucleus(weights: np.ndarray, share: float) -> np.ndarray:
    """``weights`` with 0 for all but the largest that together reach ``share`` (ties: lowest index)."""
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    return np.where(np.isin(np.arange(len(weights)), order[before < share * weights.sum()]), weights, 0.0)


def _mix(x: int) -> int:
    """splitmix64's finaliser, as in decoder.cpp."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)
