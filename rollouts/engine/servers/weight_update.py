"""Weight updates of an inference server, verified by a probe. No torch.

A server that reports success may still compute with old weights, at least in part: vLLM's reload on a CPU
leaves experts in the wrong order without an error. So each update compares the server's log-probs of a fixed
probe with the trainer's. After a start from the checkpoint their mean difference is the engine's rounding; an
update in place may not increase it much. Otherwise the server is restarted, if a command is given.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rollouts.config import HttpConfig
from rollouts.engine.base import Delivery
from rollouts.engine.client import ServerFault
from rollouts.engine.servers.http import EngineGone, HttpEngine

_GROWTH, _FLOOR = 3.0, 1e-5  # an update in place may raise the mean difference threefold, or to this
_CALL_S = 120.0
log = logging.getLogger(__name__)


class StaleWeights(RuntimeError):
    """The server accepted an update but does not compute with it."""


@dataclass(slots=True)
class Verifier:
    """Compares a server's log-probs with the trainer's, as means over the probe's tokens, in nats."""

    tolerance: float
    rounding: float | None = None  # the difference after a start
    _before: tuple[list[float], list[float]] | None = field(default=None, repr=False)

    def judge(self, served: list[float], wanted: list[float], *, fresh: bool) -> tuple[float, str]:
        """(mean difference, error or an empty string); ``fresh``: the server has just loaded from disk."""
        gap = _mean_gap(served, wanted)
        before, self._before = self._before, (served, wanted)
        if fresh:
            self.rounding = gap
        elif before and served == before[0] and _mean_gap(wanted, before[1]) > 1e-7:
            return gap, "it computes exactly what it computed before the update"
        elif self.rounding is not None and gap > max(_GROWTH * self.rounding, _FLOOR):
            return gap, f"log-probs are off by {gap:.2g} on average, by {self.rounding:.2g} after its last start"
        if gap > self.tolerance:
            return gap, f"log-probs are off by {gap:.2g} on average, more than rollouts.http.tolerance={self.tolerance}"
        return gap, ""


class Deliverer:
    """Updates one server, in place or by a restart."""

    def __init__(self, engine: HttpEngine, config: HttpConfig) -> None:
        self.engine, self.config = engine, config
        self.verifier = Verifier(config.tolerance)
        self.in_place = config.weights != "restart"
        self.gap = 0.0
        self.restarts = 0

    async def deliver(self, delivery: Delivery) -> None:
        """The server computes with ``delivery`` on return. Raises StaleWeights, EngineGone, TimeoutError."""
        if self.engine.running:
            raise RuntimeError(f"weight update to version {delivery.version} while {self.engine.running} requests run")
        try:
            async with asyncio.timeout(self.config.update_s) as clock:
                await self._deliver(delivery)
        except TimeoutError as error:
            late = f"within rollouts.http.update_s={self.config.update_s:g}" if clock.expired() else str(error)
            raise TimeoutError(f"{self.engine.url} did not take version {delivery.version}: {late}") from error
        self.engine.policy_version = delivery.version

    async def _deliver(self, delivery: Delivery) -> None:
        first = self.engine.policy_version < 0
        wrong = "this is the first" if first and self.config.restart else ""
        if self.in_place and not wrong:
            wrong = await self._update(delivery)
            if wrong and self.config.restart:
                self.in_place = False
                log.warning(
                    "%s: the update to version %d in place failed (%s): from here on each version restarts it",
                    *(self.engine.url, delivery.version, wrong),
                )
        if wrong or not self.in_place:
            await self._restart(delivery, wrong)

    async def _update(self, delivery: Delivery) -> str:
        """Pause, load weights, resume, probe; returns what went wrong."""
        engine, dialect, version = self.engine, self.engine.dialect, str(delivery.version)
        if self.config.weights == "transfer":
            calls = dialect.transfer(delivery.files(), version)
        else:
            calls = dialect.reload(delivery.folder, version)
        try:
            await engine.wait_healthy(_CALL_S)
            await engine.call(dialect.pause(), _CALL_S)
            for call in calls:
                await engine.call(call, self.config.update_s)
            await engine.call(dialect.resume(), _CALL_S)
            return await self._probe(delivery, fresh=False)
        except (ServerFault, ValueError) as error:  # a restart may still help
            return str(error)

    async def _restart(self, delivery: Delivery, why: str) -> None:
        if not self.config.restart:
            raise StaleWeights(
                f"{self.engine.url} does not serve version {delivery.version}: {why}; set rollouts.http.restart to a"
                " command that starts it from {folder}"
            )
        self.restarts += 1
        await run_command(self.config.restart, folder=delivery.folder, url=self.engine.url)
        await self.engine.wait_healthy(self.config.update_s)
        for call in self.engine.dialect.label(str(delivery.version)):
            await self.engine.call(call, _CALL_S)
        wrong = await self._probe(delivery, fresh=True)
        if wrong:
            raise StaleWeights(
                f"{self.engine.url} was started from {delivery.folder}, but {wrong}: it computes something else than"
                " the policy (its dtype, its kernels), or the restart did not replace the old server"
            )

    async def _probe(self, delivery: Delivery, *, fresh: bool) -> str:
        served = await self.engine.score(delivery.probe, deadline_s=_CALL_S)
        self.gap, wrong = self.verifier.judge(served, delivery.logprobs, fresh=fresh)
        return wrong


async def run_command(command: str, *, folder: Path, url: str) -> None:
    """Run the user's ``command``, with {folder} and {url} filled in, to its end; EngineGone if it fails."""
    line = command.replace("{folder}", shlex.quote(str(folder))).replace("{url}", shlex.quote(url))
    with tempfile.TemporaryFile() as said:  # not a pipe: the server, which keeps running, would hold it open
        process = await asyncio.create_subprocess_shell(
            line, stdin=asyncio.subprocess.DEVNULL, stdout=said, stderr=said
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        said.seek(0)
        if code:
            raise EngineGone(f"rollouts.http.restart ended with {code}: {said.read()[-500:].decode(errors='replace')}")


def _mean_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} log-probs against {len(theirs)}")
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / max(len(ours), 1)
