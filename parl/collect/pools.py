"""Engine pools: their sizes, refreshed sub-agents' weights, and replicas that change pools.

Policy versions count weight syncs. Refreshed sub-agents are the policy of the last version divisible by
``refresh_every``; their weights are kept in the run's folder for a resumed run.
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
from parl.shown.terminal import echo
from rewards.base import Reward
from rewards.outcome.judge import account
from rewards.scoring import Scoring
from rollouts.config import RolloutsConfig
from rollouts.engine.base import PoolEngine
from rollouts.engine.built_in import Embedded

VERDICTS = "judge"  # a judge's verdicts, in a run's folder
_BUSIER = 1.5  # ratio of requests per replica from which a replica changes pools


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSide:
    """Settings of a run's rollout side.

    ``environment`` and ``scoring`` go to the workers; ``served``: folder of weights for servers; ``adapters``:
    the learner trains them; ``back``: versions that a resumed run may go back; ``step_s``: deadline of a step.
    """

    rollouts: RolloutsConfig
    model: PolicyFields
    environment: Environment
    scoring: Scoring
    served: Path
    adapters: bool
    back: int
    step_s: float
    seed: int

    @classmethod
    def of(cls, config: Config) -> RolloutSide:
        """The settings for a run of ``config``."""
        trainer = config.trainer
        return cls(
            rollouts=config.rollouts,
            model=config.model,
            environment=config.envs.build(),
            scoring=scoring_of(config.rewards, config.run_dir),
            served=config.run_dir / "served",
            adapters=config.optimizer.lora is not None,
            back=trainer.checkpoint_every * trainer.keep_checkpoints,
            step_s=trainer.step_s,
            seed=config.seed,
        )


def scoring_of(rewards: Reward, run_dir: Path) -> Scoring:
    """What scores ended episodes of a run; a judge's verdicts are kept in its folder."""
    return Scoring(rewards, run_dir.absolute() / VERDICTS)


def tell_judge(rewards: Reward, run_dir: Path) -> None:
    """Print the requests, tokens and cost of the run's judge, if it has one."""
    if rewards.judge is not None:
        echo(str(account(run_dir / VERDICTS, rewards.judge)))


def pool_sizes(rollouts: RolloutsConfig) -> dict[str, int]:
    """Replicas of each pool at the start; co-trained sub-agents need none of their own."""
    frozen = 0 if rollouts.subagent_pool == "co_trained" else rollouts.frozen_engines
    return {"policy": rollouts.policy_engines, "frozen": frozen}


def engine_kinds(rollouts: RolloutsConfig) -> dict[str, type[PoolEngine]]:
    """The engine's class for each pool: sub-agents without their own servers use the embedded engine."""
    kind: Any = ENGINES.resolve(rollouts.engine)
    own = not kind.servers or rollouts.http.frozen_urls
    return {"policy": kind, "frozen": kind if own else Embedded}


def subagents(rollouts: RolloutsConfig, policy: PolicyFields, tokenizer: str, start: Weights) -> tuple[Shape, Weights]:
    """Shape and weights of the sub-agents at the start. UserError if their vocabulary differs."""
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

    ``loads``: mean running requests of each pool. The idler pool gives one if it has more than one and the
    other has ``_BUSIER`` times its requests per replica, also after the change.
    """
    order = sorted(sizes, key=lambda pool: (loads[pool] / sizes[pool], pool))
    idle, busy = order[0], order[-1]
    if idle == busy or sizes[idle] < 2:
        return None
    before = loads[busy] / sizes[busy] > _BUSIER * loads[idle] / sizes[idle]
    after = loads[busy] / (sizes[busy] + 1) >= loads[idle] / (sizes[idle] - 1)
    return (idle, busy) if before and after else None


class Refreshed:
    """Weights of refreshed sub-agents: which are due, and the last ones for a resumed run."""

    def __init__(self, every: int, keep: int, folder: Path | None) -> None:
        """``keep``: versions that a resumed run may go back; without ``folder`` nothing is kept."""
        self._every, self._keep, self._folder = every, keep, folder
        self.version = -1  # being served

    def forget(self) -> None:
        """Another policy is served next: the sub-agents' weights are no longer valid."""
        self.version = -1

    def due(self, version: int, weights: Weights) -> tuple[int, Weights] | None:
        """The sub-agents' weights from policy ``version`` on, if they change."""
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
