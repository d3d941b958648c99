"""The built-in engines by configuration name. No torch: heavy modules are imported in :meth:`open`."""

from __future__ import annotations

from typing import ClassVar

from rollouts.config import RolloutsConfig
from rollouts.engine.base import Place, PoolEngine
from rollouts.engine.embedded.traits import EmbeddedTraits


def int8_of(rollouts: RolloutsConfig) -> str:
    """``rollouts.engine_config.int8``; "none" of engines without that key."""
    return getattr(rollouts.engine_config, "int8", "none")


def in_int8(rollouts: RolloutsConfig, pool: str) -> bool:
    """Whether the embedded engines of ``pool`` keep their matrices in int8."""
    return int8_of(rollouts) in ("all", pool)


class Embedded(EmbeddedTraits):
    """The embedded engine over the family's decoder, in its actor's process."""

    @classmethod
    def open(cls, place: Place) -> PoolEngine:
        """The engine on this machine."""
        from rollouts.engine.embedded.engine import EmbeddedEngine

        int8 = in_int8(place.rollouts, place.pool)
        return EmbeddedEngine(place.model, record_routes=place.routes, int8=int8)

    @classmethod
    def check(cls, rollouts: RolloutsConfig) -> None:
        """Also whether there are engines of frozen sub-agents, and they stay theirs."""
        super().check(rollouts)
        if int8_of(rollouts) == "frozen" and (rollouts.rebalance or rollouts.subagent_pool == "co_trained"):
            raise ValueError(
                "rollouts.engine_config.int8=frozen needs engines that serve frozen sub-agents alone: set"
                " rollouts.rebalance to false and rollouts.subagent_pool to frozen or refreshed"
            )


class Server(PoolEngine):
    """The client of one HTTP server of the kind ``dialect`` (``rollouts.engine.servers.dialects``)."""

    servers = in_flight = True
    dialect: ClassVar[str]
    buckets: ClassVar[bool] = False  # supports ``rollouts.http.weights: transfer`` and ``pull``

    @classmethod
    def open(cls, place: Place) -> PoolEngine:
        """The client; the server is already running."""
        from rollouts.engine.servers.served import ServedEngine

        return ServedEngine.of(place, cls.dialect)

    @classmethod
    def check(cls, rollouts: RolloutsConfig) -> None:
        """Check addresses, and that weights can reach them."""
        http, named = rollouts.http, f"rollouts.engine={rollouts.engine}"
        if not http.urls and http.urls_file is None:
            raise ValueError(f"{named} needs rollouts.http.urls, e.g. [http://127.0.0.1:8000]")
        if shared := set(http.urls) & set(http.frozen_urls):
            raise ValueError(
                f"rollouts.http.frozen_urls={sorted(shared)} also serve the policy: a server holds one model"
            )
        if http.weights == "restart" and not http.restart:
            raise ValueError("rollouts.http.weights=restart needs the command rollouts.http.restart")
        if http.weights in ("transfer", "pull") and not cls.buckets:
            raise ValueError(
                f"rollouts.http.weights={http.weights} needs rollouts.engine=vllm, not {rollouts.engine}: set it to"
                " reload"
            )


class Vllm(Server):
    """vLLM 0.32 and later."""

    dialect = "vllm"
    buckets = temperature_one = True


class Sglang(Server):
    """SGLang."""

    dialect = "sglang"
