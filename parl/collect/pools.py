"""Who serves the sub-agents: sizes of the engine pools, refreshed weights, and replicas that change pools.

Policy versions count weight syncs. Refreshed sub-agents are the policy of the last version that ``refresh_every``
divides; those weights are kept in a folder of the run, so that a resumed run has the same sub-agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from envs.base import Environment
from model.decoder import Weights
from model.family import Shape, family_of
from model.files import replacing
from model.policy_files import load_policy
from model.tokenizer.tokenizer import load_tokenizer
from parl.config.plugin_kinds import ENGINES
from parl.config.schema import Config, PolicyFields
from parl.errors import UserError
from rollouts.config import RolloutsConfig
from rollouts.engine.base import PoolEngine
from rollouts.engine.built_in import Embedded

_BUSIER = 1.5  # requests a replica of one pool over the other's, from which on a replica changes


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSide:
    """What the rollout side of a run is made from.

    ``environment`` goes to the workers; ``served`` is the folder in which servers find weights; ``adapters``: the
    learner trains them; ``back``: versions that a resumed run may go back; ``step_s``: deadline of a step.
    """

    rollouts: RolloutsConfig
    model: PolicyFields
    environment: Environment
    served: Path
    adapters: bool
    back: int
    step_s: float
    seed: int

    @classmethod
    def of(cls, config: Config) -> RolloutSide:
        """That of a run of ``config``."""
        trainer = config.trainer
        return cls(
            rollouts=config.rollouts,
            model=config.model,
            environment=config.envs.build(),
            served=config.run_dir / "served",
            adapters=config.optimizer.lora is not None,
            back=trainer.checkpoint_every * trainer.keep_checkpoints,
            step_s=trainer.step_s,
            seed=config.seed,
        )


def pool_sizes(rollouts: RolloutsConfig) -> dict[str, int]:
    """Replicas of each pool at a run's start; co-trained sub-agents need none of their own."""
    frozen = 0 if rollouts.subagent_pool == "co_trained" else rollouts.frozen_engines
    return {"policy": rollouts.policy_engines, "frozen": frozen}


def servers_of(rollouts: RolloutsConfig, pool: str) -> tuple[str, ...]:
    """The addresses of the pool's servers."""
    return rollouts.http.urls if pool == "policy" else rollouts.http.frozen_urls


def engine_kinds(rollouts: RolloutsConfig) -> dict[str, type[PoolEngine]]:
    """The engine's class for each pool: sub-agents without servers of their own are served by ours."""
    kind: Any = ENGINES.resolve(rollouts.engine)
    own = not kind.servers or rollouts.http.frozen_urls
    return {"policy": kind, "frozen": kind if own else Embedded}


def subagents(rollouts: RolloutsConfig, policy: PolicyFields, tokenizer: str, start: Weights) -> tuple[Shape, Weights]:
    """Shape and weights of the sub-agents at a run's start. UserError where their vocabulary is another."""
    folder = rollouts.subagent_policy
    if folder is None:
        return policy.shape, start
    if not (folder / "model.safetensors").exists():
        raise UserError(
            f"rollouts.subagent_policy={folder}: no policy there (parl train and parl sft write such folders)"
        )
    weights, model, own, _ = load_policy(folder, family_of(policy))
    if own.fingerprint != load_tokenizer(tokenizer).fingerprint:
        raise UserError(
            f"rollouts.subagent_policy={folder} has another vocabulary than the policy: they must share one"
        )
    return model, weights


def change(loads: Mapping[str, float], sizes: Mapping[str, int]) -> tuple[str, str] | None:
    """(pool that gives a replica, pool that gets it), or None.

    ``loads``: mean requests under way at each pool, all replicas together. The idler pool gives one if the other has
    ``_BUSIER`` times its requests a replica, also after the change, and it has more than one.
    """
    order = sorted(sizes, key=lambda pool: (loads[pool] / sizes[pool], pool))
    idle, busy = order[0], order[-1]
    if idle == busy or sizes[idle] < 2:
        return None
    before = loads[busy] / sizes[busy] > _BUSIER * loads[idle] / sizes[idle]
    after = loads[busy] / (sizes[busy] + 1) >= loads[idle] / (sizes[idle] - 1)
    return (idle, busy) if before and after else None


class Refreshed:
    """The weights of refreshed sub-agents: which are due, and those of the last refreshment for a resumed run."""

    def __init__(self, every: int, keep: int, folder: Path | None) -> None:
        """``keep``: versions that a resumed run may go back; without ``folder`` nothing is kept."""
        self._every, self._keep, self._folder = every, keep, folder
        self.version = -1  # that is served

    def forget(self) -> None:
        """Another policy is served next: what its sub-agents have is no longer theirs, whatever its version."""
        self.version = -1

    def due(self, version: int, weights: Weights) -> tuple[int, Weights] | None:
        """What sub-agents are to be served from policy ``version`` on, if that is not what they have."""
        wanted = version - version % self._every
        if wanted == self.version:
            return None
        if wanted == version:
            self._save(version, weights)
        elif self._folder is not None and self._path(wanted).exists():
            weights = load_file(self._path(wanted))
        else:
            raise UserError(
                f"the sub-agents' weights of version {wanted} are not in {self._folder}: a run that was started with"
                " another rollouts.subagent_pool or refresh_every cannot be resumed with this one"
            )
        self.version = wanted
        return wanted, weights

    def _path(self, version: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{version:06d}.safetensors"

    def _save(self, version: int, weights: Weights) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(version)
        if path.exists():  # a resumed run computes the same
            return
        with replacing(path) as temporary:
            save_file(dict(weights), temporary)
        for old in self._folder.glob("*.safetensors"):
            if int(old.stem) < version - self._every - self._keep:
                old.unlink()
