"""A decoder of transformers in the form that the learner trains.

It keeps transformers' modules and their names, so that a state dict is what ``AutoModelForCausalLM`` reads; a head that
shares the embedding's matrix has no name of its own.

Shapes: B rows, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.blocks.attention import Shared, row_starts
from model.blocks.expert_parallel import ExpertGroup, cut
from model.blocks.logprobs import Head
from model.blocks.recompute import recomputed
from model.hf.attention import Packed
from model.hf.build import check_class, new_model, refused
from model.hf.experts import fused
from model.hf.routers import make_routed
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
    """See :class:`model.policy.Policy`. ``causal``: transformers' model of shape ``config``; by default a blank one.

    ValueError with the reason where it cannot be a policy.
    """

    config: HfShape

    def __init__(self, config: HfShape, causal: Any = None) -> None:
        super().__init__(config)
        causal = new_model(config, drawn=False) if causal is None else causal
        check_class(causal)
        self._base = causal.base_model_prefix
        self._causal = (causal,)  # a tuple: its modules are ours
        setattr(self, self._base, causal.base_model)
        self.lm_head = causal.lm_head = _head(causal)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        try:
            self._routers = make_routed(self)
        except ValueError as error:
            raise refused(causal.config, str(error)) from None
        check_routes(self, self._routers)
        # transformers makes the masks of windows and chunks for rows that each begin at position 0
        own = causal.config.to_dict()
        self.shares = not any(own.get(key) for key in ("sliding_window", "attention_chunk_size"))
        self.layer_classes = tuple({f"{type(layer).__module__}.{type(layer).__name__}" for layer in self.layers()})
        self.adapter_owners = adapter_owners(self.layers())

    @property
    def tied(self) -> bool:
        """Whether the head reads the embedding's matrix."""
        return isinstance(self.lm_head, TiedHead)

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
        return self._hidden(tokens_BT, routes_BTLK, list(lengths or [tokens_BT.shape[1]]))

    def hidden_shared(
        self, tokens_BT: Tensor, routes_BTLK: Tensor | None, lengths: Sequence[int], shared: Shared
    ) -> Tensor:
        """See :meth:`model.policy.Policy.hidden_shared`: outside attention a layer looks at one token at a time."""
        return self._hidden(tokens_BT, routes_BTLK, list(lengths), shared)[0]

    def _hidden(
        self, tokens_BT: Tensor, routes_BTLK: Tensor | None, rows: list[int], shared: Shared | None = None
    ) -> Tensor:
        if max(rows) > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise ValueError(f"row of {max(rows)} tokens exceeds max_position_embeddings={limit}")
        routes = None if routes_BTLK is None else routes_BTLK.flatten(0, 1)
        positions = torch.cat([torch.arange(row, device=tokens_BT.device) for row in rows])[None]
        if shared is not None:
            tokens_BT, positions = tokens_BT[:, shared.first_U], positions[:, shared.first_U]
            routes = None if routes is None else routes[shared.first_U]
        packed = Packed(tuple(rows), routes, tuple(self._routers), shared, row_starts(rows, tokens_BT.device))
        packed.replay()
        self._recompute(self.recompute)
        base: nn.Module = getattr(self, self._base)
        return base(input_ids=tokens_BT, position_ids=positions, use_cache=False, packed=packed).last_hidden_state

    def _recompute(self, on: bool) -> None:
        """Let transformers' layers keep their inputs alone; they do so in training only."""
        for layer in self.layers():
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = _recomputed

    def layers(self) -> list[Any]:
        """The decoder's layers, first to last."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]

    def routers(self) -> list[Any]:
        """Those of :mod:`model.hf.routers`."""
        return self._routers

    def split_experts(self, group: dist.ProcessGroup) -> list[str]:
        """See :mod:`model.blocks.expert_parallel`. ValueError where transformers computes the experts."""
        shared, names = ExpertGroup(group), []
        for name, module in stacks(self):
            if not fused(module):
                raise ValueError(
                    f"trainer.parallel.expert_parallel: {type(module).__name__} is computed by transformers, which"
                    " splits no experts here; set it to 1"
                )
            names += [f"{name}.{key}" for key in cut(module, shared)]
            module.group = shared
        return names or super().split_experts(group)

    def muon_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(matrices for Muon, the rest for AdamW): linear layers and stacks of experts, without head and routers."""
        linear = {id(layer.weight) for layer in self.modules() if type(layer) is nn.Linear}
        stacked = {id(p) for _, experts in stacks(self) for p in experts.parameters() if p.dim() == 3}
        trained = [p for p in self.parameters() if p.requires_grad]
        chosen = linear | stacked
        return [p for p in trained if id(p) in chosen], [p for p in trained if id(p) not in chosen]


def stacks(model: nn.Module) -> list[tuple[str, Any]]:
    """Stacks of routed experts in ``model``, by their names."""
    found = [(name, getattr(module, "experts", None)) for name, module in model.named_modules()]
    return [(f"{name}.experts", experts) for name, experts in found if isinstance(experts, nn.Module)]


def check_routes(policy: HfPolicy, routers: list[Any]) -> None:
    """ValueError where the shape says otherwise than the routers what is recorded of a token."""
    said = policy.config.routes
    told = (said.layers, said.experts) if said else (0, 0)
    found = (len(routers), len(routers[0].weight) if routers else 0)
    if told != found:
        raise ValueError(
            f"model_type={policy.config.transformers['model_type']!r}: its configuration tells of {told[0]} layers of"
            f" {told[1]} routed experts, the model has {found[0]} of {found[1]}: recorded routes would not fit"
        )


def adapter_owners(layers: list[Any]) -> dict[str, tuple[type[nn.Module], ...]]:
    """Classes whose linear layers are ``attention``, and those of all feed-forward parts (``shared_experts``)."""
    attention: set[type[nn.Module]] = set()
    others: set[type[nn.Module]] = set()
    for layer in layers:
        for name, part in layer.named_children():
            if "attn" in name or "attention" in name:
                attention.add(type(part))
                continue
            linear = [owner for owner in part.modules() if any(type(c) is nn.Linear for c in owner.children())]
            others |= {type(owner) for owner in linear}
    return {"attention": tuple(attention), "shared_experts": tuple(others)}


def _recomputed(function: partial[Any], *inputs: Any) -> Any:
    """What transformers calls to run a layer that keeps its inputs alone; the second pass replays the same routes."""
    packed: Packed = function.keywords["packed"]

    def run(*given: Any) -> Any:
        packed.replay()
        return function(*given)

    return recomputed(run, *inputs)


def _head(causal: Any) -> Head:
    """The model's head as one of ours, over the same matrix."""
    embedding, head = causal.get_input_embeddings(), causal.lm_head
    if head.weight is embedding.weight:
        return TiedHead(embedding)
    with torch.device("meta"):
        ours = Head(head.in_features, head.out_features)
    ours.weight = head.weight
    return ours
