"""What a policy costs, as arithmetic over its shape: what ``parl plan`` counts with. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Counts of the language model, to the unit. What is not trained, such as routers' correction biases, is left out.

    ``heads``: elements of a token's queries, keys, values and result in one layer; ``inside``: elements that the widest
    layer holds of a token while it computes; ``cache``: bytes that a token takes in the engine's cache, in bfloat16.
    """

    total: int  # parameters
    routed: int  # of them in routed experts
    embedding: int  # of them in the input embedding
    active: int  # of them that a token passes, the row of the embedding aside
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    inside: int
    cache: int
    routed_layers: int = 0
    experts: int = 1
    chosen: int = 0  # experts that a token is sent to

    @property
    def rest(self) -> int:
        """All parameters but those of the routed experts."""
        return self.total - self.routed
