"""A decoder of transformers in the form that the learner trains.

It keeps transformers' modules and their names, so that a state dict is what ``AutoModelForCausalLM`` reads; a head that
shares the embedding's matrix has no name of its own.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.blocks.logprobs import Head
from model.blocks.recompute import recomputed
from model.hf import attention as _registered  # noqa: F401  the attention function, before a model asks for it
from model.hf.build import check_class, check_numbers, new_model
from model.hf.shape import HfShape
from model.policy import Policy


class TiedHead(Head):
    """A head that reads the embedding's matrix, which belongs to the embedding alone."""

    def __init__(self, embedding: nn.Embedding) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings
        self.bias = None
        self._embedding = (embedding,)  # a tuple: no module of this one

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[V, D]"""
        return self._embedding[0].weight


class HfPolicy(Policy):
    """See :class:`model.policy.Policy`. ``causal``: the model, made from ``config`` where none is given.

    ValueError with the reason where the model cannot be a policy.
    """

    config: HfShape

    def __init__(self, config: HfShape, causal: Any = None) -> None:
        super().__init__(config)
        causal = new_model(config) if causal is None else causal
        check_class(causal)
        self._base = causal.base_model_prefix
        self._causal = (causal,)  # a tuple: its modules are ours
        setattr(self, self._base, causal.base_model)
        self.lm_head = causal.lm_head = _head(causal)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if not self.lm_head.weight.is_meta:
            check_numbers(causal, self.hidden)

    @property
    def causal(self) -> Any:
        """transformers' model over the same modules."""
        return self._causal[0]

    def hidden(
        self,
        tokens_BT: Tensor,
        routes_BTLK: Tensor | None = None,
        real_BT: Tensor | None = None,
        media: Any = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """See :meth:`model.policy.Policy.hidden`. ValueError for a row beyond the context, and for pictures."""
        if media is not None:
            raise ValueError("this policy reads text alone")
        rows = list(lengths or [tokens_BT.shape[1]])
        if max(rows) > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise ValueError(f"row of {max(rows)} tokens exceeds max_position_embeddings={limit}")
        self._recompute(self.recompute)
        positions = torch.cat([torch.arange(row, device=tokens_BT.device) for row in rows])[None]
        base: nn.Module = getattr(self, self._base)
        return base(input_ids=tokens_BT, position_ids=positions, use_cache=False, rows=rows).last_hidden_state

    def _recompute(self, on: bool) -> None:
        """Let transformers' layers keep their inputs alone; they do so in training only."""
        for layer in self.layers():
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = recomputed  # pyright: ignore[reportAttributeAccessIssue]

    def layers(self) -> list[Any]:
        """The decoder's layers, first to last."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]


def _head(causal: Any) -> Head:
    """The model's head as one of ours, over the same matrix."""
    embedding, head = causal.get_input_embeddings(), causal.lm_head
    if head.weight is embedding.weight:
        return TiedHead(embedding)
    with torch.device("meta"):
        ours = Head(head.in_features, head.out_features)
    ours.weight = head.weight
    return ours
