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
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rollouts.config import HttpConfig
from rollouts.engine.base import Delivery
from rollouts.engine.client import Request, ServerFault
from rollouts.engine.servers.http import EngineGone, HttpEngine
from rollouts.faults import EngineSilent

_GROWTH, _FLOOR = 3.0, 1e-5  # an update in place may raise the mean difference threefold, or to this
_CALL_S = 120.0
_POLL_S = 0.1  # between two questions whether the server has fetched a version
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
        self.pulls = config.weights == "pull"
        self.gap = 0.0
        self.restarts = 0
        self.pause_s = self.pull_s = 0.0  # of the last update
        self.pulled_bytes = 0

    async def deliver(self, delivery: Delivery) -> None:
        """The server computes with ``delivery`` on return. Raises StaleWeights, EngineGone, TimeoutError.

        EngineGone and EngineSilent, a TimeoutError, cost a restart of the rollout actors.
        """
        try:
            async with asyncio.timeout(self.config.update_s) as clock:
                await self._deliver(delivery)
        except TimeoutError as error:
            late = f"within rollouts.http.update_s={self.config.update_s:g}" if clock.expired() else str(error)
            kind = EngineSilent if self._left_out else TimeoutError
            raise kind(f"{self.engine.url} did not take version {delivery.version}: {late}") from error
        self.engine.policy_version = delivery.version

    @property
    def _left_out(self) -> bool:
        """Whether a server that is lost now is left out: it had weights, and nothing starts it anew."""
        return not self.config.restart and self.engine.policy_version >= 0

    async def _deliver(self, delivery: Delivery) -> None:
        first = self.engine.policy_version < 0
        wrong = "this is the first" if first and self.config.restart and not self.pulls else ""
        if self.in_place and not wrong:
            wrong = await self._update(delivery, fresh=self.pulls and first)
            if wrong and self.pulls and self.config.restart:
                log.warning("%s: version %d did not get there (%s): it is restarted", self.engine.url,
                            delivery.version, wrong)  # fmt: skip
            elif wrong and self.config.restart:
                self.in_place = False
                log.warning(
                    "%s: the update to version %d in place failed (%s): from here on each version restarts it",
                    *(self.engine.url, delivery.version, wrong),
                )
        if wrong or not self.in_place:
            await self._restart(delivery, wrong)

    async def _update(self, delivery: Delivery, *, fresh: bool = False) -> str:
        """Pause, load weights, resume, probe; with ``pull``, fetch them before. Returns what went wrong.

        ``fresh``: the probe's difference is the engine's rounding.
        """
        engine, dialect = self.engine, self.engine.dialect
        try:
            await engine.wait_healthy(self.config.update_s if fresh else _CALL_S)  # the first may find it starting
            if self.pulls:
                await self._pull(delivery)
            await engine.quiet()
            began = time.monotonic()
            await engine.call(dialect.pause(), _CALL_S)
            for call in self._load(delivery):
                await engine.call(call, self.config.update_s)
            await engine.call(dialect.resume(), _CALL_S)
            self.pause_s = time.monotonic() - began
            return await self._probe(delivery, fresh=fresh)
        except (ServerFault, ValueError) as error:  # a restart may still help
            if isinstance(error, EngineGone) and self._left_out:
                raise
            return str(error)

    def _load(self, delivery: Delivery) -> list[Request]:
        """The requests of a paused server."""
        dialect, version = self.engine.dialect, str(delivery.version)
        if self.config.weights == "transfer":
            return dialect.transfer(delivery.files(), version)
        if self.pulls and delivery.manifest is not None:
            return dialect.load_pulled(delivery.manifest, version)
        return dialect.reload(delivery.folder, version)

    async def _pull(self, delivery: Delivery) -> None:
        """The server fetches the version while it goes on; on return it has it. ServerFault: it could not."""
        engine, dialect, manifest = self.engine, self.engine.dialect, delivery.manifest
        assert manifest is not None
        began = time.monotonic()
        await engine.call(dialect.pull(manifest), _CALL_S)
        while True:
            workers = dialect.pulled_state(await engine.call(dialect.pulled(), _CALL_S))
            if any(worker["version"] != manifest.version for worker in workers):
                raise ServerFault(f"{engine.url} fetches version {workers[0]['version']}, not {manifest.version}")
            if errors := [worker["error"] for worker in workers if worker["error"]]:
                raise ServerFault(f"{engine.url} could not fetch version {manifest.version}: {errors[0]}")
            if all(worker["done"] for worker in workers):
                break
            await asyncio.sleep(_POLL_S)
        self.pull_s = time.monotonic() - began
        self.pulled_bytes = sum(worker["fetched"] for worker in workers)

    async def _restart(self, delivery: Delivery, why: str) -> None:
        if not self.config.restart:
            start = "starts it anew" if self.pulls else "starts it from {folder}"
            raise StaleWeights(
                f"{self.engine.url} does not serve version {delivery.version}: {why}; set rollouts.http.restart to a"
                f" command that {start}"
            )
        self.restarts += 1
        await self.engine.quiet()
        await run_command(self.config.restart, folder=delivery.folder, url=self.engine.url)
        await self.engine.wait_healthy(self.config.update_s)
        if self.pulls:
            if wrong := await self._update(delivery, fresh=True):
                raise StaleWeights(f"{self.engine.url} was restarted, and still does not serve the policy: {wrong}")
            return
        for call in self.engine.dialect.label(str(delivery.version)):
            await self.engine.call(call, _CALL_S)
        wrong = await self._probe(delivery, fresh=True)
        if wrong:
            raise StaleWeights(
                f"{self.engine.url} was started from {delivery.folder}, but {wrong}: it computes something else than"
                " the policy (its dtype, its kernels), or the restart did not replace the old server"
            )

    async def _probe(self, delivery: Delivery, *, fresh: bool) -> str:
        served = await self.engine.score(delivery.probe, deadline_s=self.config.update_s)  # the first may compile
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
