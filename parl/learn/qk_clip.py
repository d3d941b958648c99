"""QK-clip, which makes Muon MuonClip (Kimi K2, arXiv 2507.20534, 2.1, Algorithm 1): bounds attention logits.

After the optimiser's step, for each head h whose largest logit S_h of the step's forward passes exceeds τ:

    γ_h = τ / S_h;    W_q^C, W_k^C ← √γ_h W;    W_q^R ← γ_h W;    the shared W_k^R stays

S_h is the maximum over all micro-batches and ranks, so every rank scales by the same factor. Momentum and the
step's own passes are not affected. Weights are scaled whole, on every rank alike; if ranks hold parts, the
caller makes them whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from model.policy import Policy


class QKClip:
    """Records ``model``'s logits in training passes; :meth:`clip` follows each optimiser step.

    ``whole(parameters)``: a context in which these are whole on this rank and may be changed.
    """

    def __init__(
        self,
        model: Policy,
        tau: float,
        whole: Callable[[list[nn.Parameter]], AbstractContextManager] = lambda parameters: nullcontext(),
    ) -> None:
        self._tau, self._whole = tau, whole
        self._attention = list(model.attention_layers())
        if not self._attention:
            raise ValueError(f"optimizer.qk_clip={tau:g}: {type(model).__name__} has no attention that can be scaled")
        model.collect_logits = True

    @torch.no_grad()
    def clip(self) -> dict[str, float]:
        """Scale the heads above τ and reset the records.

        Returns ``max_logit``, the largest logit of the step, and ``clipped_heads``, the share of scaled
        heads, equal on every rank.
        """
        first = self._attention[0]
        heads, device = first.heads, next(iter(first.parameters())).device
        nothing_H = torch.full((heads,), -torch.inf, device=device)  # of a rank without rows
        found = [nothing_H if a.max_logit_H is None else a.max_logit_H.float() for a in self._attention]
        self.forget()
        logits_LH = torch.stack(found)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(logits_LH, torch.distributed.ReduceOp.MAX)
        above_LH = logits_LH > self._tau
        clipped = [i for i, above_H in enumerate(above_LH) if bool(above_H.any())]
        if clipped:
            with self._whole([p for i in clipped for p in self._attention[i].parameters()]):
                for i in clipped:
                    self._attention[i].scale_logits(torch.where(above_LH[i], self._tau / logits_LH[i], 1.0))
        return {"max_logit": float(logits_LH.max()), "clipped_heads": float(above_LH.float().mean())}

    def forget(self) -> None:
        """Reset the records since the last step."""
        for attention in self._attention:
            attention.max_logit_H = None
