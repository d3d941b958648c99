"""The policy contract for the learner: log-probs of given tokens, and optional traits.

A family's model derives from :class:`Policy` and defines ``lm_head`` and :meth:`Policy.hidden`.

Shapes: B rows, T positions, D hidden, V vocabulary, L routed layers, K experts per token, M tokens under the
mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.blocks.attention import Shared
from model.blocks.logprobs import Head

if TYPE_CHECKING:
    from model.family import Shape


class Router(Protocol):
    """A router: a module called as ``router(x_TD, routes_TK)``, whose result has ``ids``."""

    training: bool
    load_E: Tensor  # tokens of each expert in training passes since the last balancing

    def forward(self, x_TD: Tensor, routes_TK: Tensor | None = None) -> Any:
        """Choose experts, or use those of ``routes_TK`` (a row of -1 = choose)."""
        ...

    def register_forward_pre_hook(self, hook: Any) -> Any:
        """As :class:`torch.nn.Module`."""
        ...

    def register_forward_hook(self, hook: Any) -> Any:
        """As :class:`torch.nn.Module`."""
        ...

    def balance(self, rate: float) -> None:
        """Adjust the correction bias against the load, and reset the load."""
        ...


class ClippedAttention(Protocol):
    """An attention layer that QK-clip can rescale."""

    max_logit_H: Tensor | None  # largest logit of each head since it was last set to None, if collected

    @property
    def heads(self) -> int:
        """Number of heads."""
        ...

    def parameters(self) -> Any:
        """As :class:`torch.nn.Module`."""
        ...

    def scale_logits(self, factor_H: Tensor) -> None:
        """Multiply the logits of each head, through its weights."""
        ...


class Policy(nn.Module):
    """A trainable language model. ``config``: its shape; ``recompute``: keep only layers' inputs."""

    layer_classes: tuple[str, ...] = ()  # layers whose weights ZeRO 3 gathers together, "module.Class"
    adapter_owners: Mapping[str, tuple[type[nn.Module], ...]] = {}  # optimizer.lora.targets -> their modules

    shares: bool = False  # whether common prefixes of packed rows can be computed once (hidden_shared)

    lm_head: Head

    def __init__(self, config: Shape) -> None:
        super().__init__()
        self.config: Any = config
        self.recompute = False
        self.collect_logits = False  # in training, record the heads' largest attention logits (QK-clip)
        self.lora: nn.Module | None = None  # adapters (model.lora)

    @abstractmethod
    def hidden(
        self,
        tokens_BT: Tensor,
        routes_BTLK: Tensor | None = None,
        real_BT: Tensor | None = None,
        media: Any = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D], the input of :attr:`lm_head`.

        Either each of B is a row, or B is 1 and T packs rows of ``lengths``: then no position attends to
        another row, and each row starts at position 0. ``real_BT``: positions that the loss depends on.
        """

    def forward(
        self,
        tokens_BT: Tensor,
        mask_BT: Tensor | None = None,
        routes_BTLK: Tensor | None = None,
        temperature: float = 1.0,
        media: Any = None,
        lengths: Sequence[int] | None = None,
        shared: Shared | None = None,
        places_M: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs [M] of the M tokens under ``mask_BT`` given their prefixes, and the entropies [M] (detached).

        A token at a row's position 0 has no prefix and must not be under the mask. ``shared``: compute the common
        beginnings of packed rows once; only for policies with the trait ``shares``. ``places_M``, in place of the
        mask: the indices of those tokens in the flattened B T, checked (:func:`trained_places`); a GPU need not be
        asked then how many there are.
        """
        rows = list(lengths or [tokens_BT.shape[1]] * len(tokens_BT))
        if places_M is None:
            assert mask_BT is not None, "give mask_BT or places_M"
            places_M = trained_places(mask_BT.flatten(), rows)
        real = None
        if self.collect_logits and self.training:
            real = _up_to_last(places_M, rows, tokens_BT.numel()).view(tokens_BT.shape)
        before_M = places_M - 1
        if shared is None:
            hidden = self.hidden(tokens_BT, routes_BTLK, real, media, lengths).flatten(0, 1)
        else:
            hidden = self.hidden_shared(tokens_BT, routes_BTLK, rows, shared)
            before_M = shared.place_T[before_M]
        return self.lm_head(hidden[before_M], tokens_BT.flatten()[places_M], temperature)  # type: ignore[return-value]

    @torch.no_grad()
    def next_logits(self, tokens_T: Tensor) -> Tensor:
        """Logits [V] of the token after ``tokens_T``."""
        return self.lm_head(self.hidden(tokens_T[None])[0, -1])  # type: ignore[return-value]

    # ---------------------------------------------------------------- traits

    def hidden_shared(
        self, tokens_BT: Tensor, routes_BTLK: Tensor | None, lengths: Sequence[int], shared: Shared
    ) -> Tensor:
        """:meth:`hidden` of the computed tokens only, [U, D]; for policies with the trait :attr:`shares`."""
        raise NotImplementedError(f"{type(self).__name__} computes every row by itself")

    def routers(self) -> Sequence[Router]:
        """The routers of all mixture-of-experts layers, first to last."""
        return ()

    def attention_layers(self) -> Sequence[ClippedAttention]:
        """Attention layers whose logits can be rescaled (QK-clip), first to last."""
        return ()

    def freeze_tower(self, frozen: bool = True) -> None:
        """Stop or resume training the vision tower; does nothing without one."""

    def weights_changed(self) -> None:
        """Called after parameters were written without autograd, as DeepSpeed does."""

    def split_experts(self, group: dist.ProcessGroup) -> list[str]:
        """Leave each rank of ``group`` its share of each layer's experts; names of the split parameters."""
        raise ValueError(f"{type(self).__name__} has no experts to split: set trainer.parallel.expert_parallel to 1")

    def muon_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(matrices for Muon, the rest for AdamW). By default all linear layers' matrices except the head's."""
        matrices = {id(layer.weight) for layer in self.modules() if type(layer) is nn.Linear}
        trained = [p for p in self.parameters() if p.requires_grad]
        return [p for p in trained if id(p) in matrices], [p for p in trained if id(p) not in matrices]


def trained_places(mask_T: Tensor, lengths: Sequence[int]) -> Tensor:
    """Indices [M] of the tokens under ``mask_T``; ValueError if a row's first token is among them."""
    if bool(mask_T[torch.tensor([0, *lengths[:-1]]).cumsum(0)].any()):
        raise ValueError("mask covers position 0, which has no prefix to predict it from")
    return mask_T.nonzero().squeeze(1)


def _up_to_last(places_M: Tensor, lengths: Sequence[int], count: int) -> Tensor:
    """True up to each row's last place: later positions, padding included, do not affect the loss."""
    mask_T = places_M.new_zeros(count, dtype=torch.bool).index_fill_(0, places_M, True)
    return torch.cat([row.flip(0).cumsum(0).flip(0) > 0 for row in mask_T.split(list(lengths))])
