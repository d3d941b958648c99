"""A decoder for families without their own: the whole policy over the whole sequence, for each token. Slow.

Batch-invariant, since each sequence is computed separately. Pages hold the tokens, so sequences share them as
they would share a cache of keys.
"""

from __future__ import annotations

import numpy as np
import torch

from model.arrays import fill
from model.decoder import PAGE, Features, NotFinite, Weights, check_weights, sampled, shapes_of
from model.policy import Policy


class ForwardDecoder:
    """See :class:`model.decoder.Decoder`. ``policy`` has no vision."""

    def __init__(self, policy: Policy, pages: int) -> None:
        self._policy = policy.eval()
        self._shapes = shapes_of(policy)
        self._tokens = np.zeros(pages * PAGE, np.int64)
        said = policy.config.routes
        self.routes = np.full((pages, PAGE, said.layers, said.chosen) if said else (pages, PAGE, 0, 0), -1, np.int16)
        self._chosen: list[torch.Tensor] = []  # [T, K] of each router, of the current sequence
        for router in policy.routers():
            router.register_forward_hook(lambda _, __, choice: self._chosen.append(choice.ids))

    def load(self, weights: Weights) -> None:
        """See :meth:`model.decoder.Decoder.load`."""
        check_weights(self._shapes, weights)
        fill(self._policy, weights)
        self._policy.weights_changed()

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
        for token, position, sequence in zip(tokens, positions, sequences, strict=True):
            self._tokens[tables[sequence][position // PAGE] * PAGE + position % PAGE] = token
        found = []
        for row in rows:
            places = np.arange(positions[row] + 1)
            slots = tables[sequences[row]][places // PAGE].astype(np.int64) * PAGE + places % PAGE
            self._chosen.clear()
            found.append(self._policy.next_logits(torch.from_numpy(self._tokens[slots])).float().numpy())
            if self._chosen:
                self.routes.reshape(-1, *self.routes.shape[2:])[slots] = torch.stack(self._chosen, dim=1).numpy()
        logits = np.stack(found) if found else np.empty((0, self._policy.config.vocab_size), np.float32)
        if not np.isfinite(logits).all():
            raise NotFinite("the policy produced a NaN or infinite logit")
        return logits

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
