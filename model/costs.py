"""Parameter, memory and cache counts of a policy from its shape, for ``parl plan``. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Exact counts of the language model, without untrained numbers such as routers' correction biases.

    ``heads``: elements of a token's queries, keys, values and result in one layer. ``inside``: elements per
    token of the widest layer. ``cache``: bytes per token in the engine's cache, in bfloat16.
    """

    total: int  # parameters
    routed: int  # of them in routed experts
    embedding: int  # of them in the input embedding
    active: int  # of them that a token passes, without the embedding
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    inside: int
    cache: int
    tied: bool = False  # the head shares the embedding's matrix
    routed_layers: int = 0
    experts: int = 1
    chosen: int = 0  # experts that a token is sent to

    @property
    def rest(self) -> int:
        """All parameters but those of the routed experts."""
        return self.total - self.routed

    @property
    def unread(self) -> int:
        """Parameters of which a token reads one row: the embedding's, unless tied."""
        return 0 if self.tied else self.embedding

    @property
    def ends(self) -> int:
        """Parameters of embedding and head."""
        return self.embedding + self.unread
