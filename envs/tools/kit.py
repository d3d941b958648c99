"""The contract of tools that any environment can offer: a kit for an environment, opened for each episode."""

from __future__ import annotations

from collections.abc import Mapping

from envs.base import ToolCall, ToolResult, ToolSpec


class Opened:
    """A kit's part of one episode. State that one agent must not see is keyed by agent id."""

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """The result of ``call``, which names one of the kit's tools.

        May raise what :class:`envs.plugs.session.PlugSession` makes results of: Refused, ServerLost, TimeoutError.
        """
        raise NotImplementedError

    async def cancel(self, agent_id: str) -> None:
        """Stop what runs for ``agent_id``, which was stopped from outside."""

    async def close(self) -> None:
        """Release what the episode held; safe to call twice."""


class Kit:
    """Tools that belong together. Cheap to create; clients and processes come with the first call."""

    specs: tuple[ToolSpec, ...]
    stateless = True  # no call changes later ones

    def check(self) -> None:
        """ValueError for what is missing on this machine: a key, a program."""

    def open(self, folder: str | None) -> Opened:
        """The part of one episode. ``folder``: where its files are, if agents have files."""
        raise NotImplementedError

    async def close(self) -> None:
        """Release everything; the kit can be used again."""


def spec(name: str, about: str, required: tuple[str, ...] = (), **parameters: Mapping[str, object]) -> ToolSpec:
    """A tool with ``parameters`` as JSON schemas."""
    schema = {"type": "object", "properties": parameters, "required": list(required)}
    return ToolSpec(name=name, description=about, parameters=schema)
