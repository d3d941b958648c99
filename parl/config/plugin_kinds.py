"""The kinds of plug-ins and their built-ins.

Each names a class by ``module:Class``, imported when a configuration asks for it. No torch.
"""

from __future__ import annotations

import inspect

from pydantic import BaseModel

from model.family import check_family
from parl.config.plugin import Kind
from parl.learn.objective.base import check_objective
from rewards.base import check_reward
from rollouts.engine.base import check_engine


def check_section(found: object, what: str) -> None:
    """ValueError unless ``found`` is a pydantic model that refuses unknown keys."""
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ValueError(f"{what} must be a pydantic model, derived from envs.base.Section")
    if found.model_config.get("extra") != "forbid":
        raise ValueError(f"{what} lets unknown keys pass: derive it from envs.base.Section")


def _environment(found: type) -> None:
    from envs.base import Environment

    if not issubclass(found, Environment):
        raise ValueError("derive it from envs.base.Environment")
    for name in ("tasks", "open"):
        if getattr(found, name) is getattr(Environment, name):
            raise ValueError(f"it has no method {name}")
    taken = inspect.signature(found.open).parameters
    if not {"seed", "attempt"} <= taken.keys() and all(one.kind is not one.VAR_KEYWORD for one in taken.values()):
        raise ValueError("write its method as: async def open(self, task, *, seed=0, attempt=0)")
    check_section(found.Config, "its class Config")


def _family(found: type) -> None:
    check_family(found)
    check_section(found.Shape, "its class Shape")  # type: ignore[attr-defined]


ENVIRONMENTS = Kind(
    what="environment",
    built_in={
        "world": "envs.world.environment:WorldEnvironment",
        "harness": "envs.harness:HarnessEnvironment",
        "functions": "envs.plugs.functions:FunctionsEnvironment",
        "research": "envs.research.environment:ResearchEnvironment",
        "mcp": "envs.plugs.mcp:McpEnvironment",
        "tools": "envs.tools.environment:ToolsEnvironment",
        "retrieve": "envs.plugs.retrieve:RetrieveEnvironment",
        "verifiers": "envs.plugs.verifiers:VerifiersEnvironment",
        "nemo_gym": "envs.plugs.nemo_gym:NemoGymEnvironment",
        "openenv": "envs.steps.openenv:OpenEnvEnvironment",
        "gymnasium": "envs.steps.gymnasium:GymnasiumEnvironment",
        "aviary": "envs.steps.aviary:AviaryEnvironment",
        "skyrl": "envs.steps.skyrl:SkyRlEnvironment",
        "benchmark": "envs.benchmarks.environment:BenchmarkEnvironment",
        "textarena": "envs.steps.textarena:TextArenaEnvironment",
    },
    check=_environment,
)

OBJECTIVES = Kind(
    what="objective",
    built_in={
        "k25": "parl.learn.objective.k25:K25",
        "grpo": "parl.learn.objective.grpo:Grpo",
        "gspo": "parl.learn.objective.gspo:Gspo",
        "cispo": "parl.learn.objective.cispo:Cispo",
    },
    check=check_objective,
)

REWARDS = Kind(what="reward", built_in={"parl": "rewards.parl_reward:Parl"}, check=check_reward)

FAMILIES = Kind(what="family", built_in={"kimi": "model.kimi.family:Kimi", "hf": "model.hf.family:Hf"}, check=_family)

ENGINES = Kind(
    what="engine",
    built_in={
        "embedded": "rollouts.engine.built_in:Embedded",
        "vllm": "rollouts.engine.built_in:Vllm",
        "sglang": "rollouts.engine.built_in:Sglang",
    },
    check=check_engine,
)
