"""The identity of an evaluation's episodes: a description of all that they depend on, and its hash.

An episode is a function of its policy, its task, its number and the settings below. Sampling noise is keyed,
so numbers of engines, workers and coroutines do not matter; deadlines do. Named files count by content.
Prompts and tools count too, and ``VERSION`` for everything else in the code.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from envs.base import Environment, Task, ToolSpec
from envs.tasks_io import load_tasks
from model.chat.base import ChatFormat
from model.files import file_digest
from parl.config.family import chat_format
from parl.config.schema import Config, EnvsFields
from rewards.base import Reward
from rewards.outcome.function import score_function
from rewards.outcome.sections import CommandSection
from rollouts.prompts import PromptsConfig

VERSION = 2  # raised when the code makes other episodes of the same settings; test_identity.py checks
_WEIGHTS = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "tiktoken.model")


class Effect(StrEnum):
    """Which episodes of an evaluation a key affects."""

    ALL = "all"
    OWN = "own"  # those of our weights; a chat server has its own model
    CHAT = "chat"  # those of a chat server's model, counted in our vocabulary
    CONTENT = "content"  # by its content (a file, the rendered prompts), not by the key's value
    NONE = "none"


# Every key of the configuration, by section. An unlisted key counts as ALL, and a test fails.
_TABLE: dict[Effect, dict[str, str]] = {
    Effect.ALL: {
        "rollouts": "swarm subagent_temperature",
        "rollouts.budget": "orchestrator_steps subagent_steps subagents direct_calls critical_factor critical_steps"
        " turn_tokens total_tokens episode_s call_s",
        "rollouts.limits": "agent_s stage_s subagents tool_calls",  # concurrency matters only with deadlines
        "rollouts.context": "policy orchestrator_tokens subagent_tokens",
        "eval": "split temperature top_p seed",
        "rewards": "range",  # scores of functions, judges and commands are stored with the episodes
        "rewards.judge": "url model temperature max_tokens",
    },
    Effect.OWN: {
        "model": "family vocab_size hidden_size num_hidden_layers"
        " first_k_dense_replace intermediate_size num_attention_heads"
        " q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim n_routed_experts num_experts_per_tok"
        " n_shared_experts moe_intermediate_size n_group topk_group routed_scaling_factor norm_topk_prob rms_norm_eps"
        " latent_norm_eps quantize_experts rope_theta rope_interleave max_position_embeddings"
        " media_placeholder_token_id transformers chat dtype",
        "model.rope_scaling": "factor original_max_position_embeddings beta_fast beta_slow mscale mscale_all_dim",
        "model.vision": "patch_size pos_emb_height pos_emb_width pos_emb_time num_hidden_layers hidden_size"
        " intermediate_size num_attention_heads merge_kernel_size rope_theta text_hidden_size"
        " projection_layer_norm_eps",
        "rollouts": "subagent_pool engine",
        "rollouts.engine_config": "int8",
        "rollouts.http": "frozen_urls",
    },
    Effect.CHAT: {"tokenizer": "vocab_size", "sft": "seed"},
    Effect.CONTENT: {
        "model": "init",
        "envs": "tasks",
        "rollouts": "subagent_policy thinking subagent_thinking",
        "rollouts.prompts": "orchestrator create_subagent assign_task",
        "rewards": "function",
        "rewards.judge": "prompt",
        "rewards.command": "argv reads deadline_s level readable",
    },
    Effect.NONE: {
        "": "name root mirror seed baseline starter",  # the starter matters through the cold start's weights
        "model": "initializer_range embedding_range embedding_mean look_back",  # only for training
        "sft": "data best tokens copying_tokens drill_tokens batch_tokens lr muon_lr parallel wrong observation_weight"
        " enough check_tokens check_tasks",
        "sft.lora": "rank alpha targets",
        "rollouts": "group_size tasks_per_step dynamic_sampling temperature concurrency workers policy_engines"
        " frozen_engines refresh_every rebalance placement max_restarts score_deadline_s",
        "rollouts.budget.curriculum": "slack until stairs",  # of training: an evaluation's budgets are tight
        "rollouts.http": "urls urls_file api_key_env weights publish restart without_routes tolerance update_s",
        "optimizer": "lr muon_lr final_lr weight_decay grad_clip freeze_tower qk_clip",
        "optimizer.lora": "rank alpha targets",
        "trainer": "steps epochs minibatches micro_tokens ranks threads device checkpoint_every keep_checkpoints"
        " keep_best staleness overlap step_s most_unread",
        "trainer.parallel": "zero expert_parallel offload recompute",
        "eval": "tasks",  # how many, not how
        "rewards.judge": "api_key_env tries request_s concurrency price_in price_out",
        "rewards.latency": "first_token_s decode_s prefill_s tool_s concurrency",  # costs: computed when read
        "cluster": "address ports labels",
        "tracking": "wandb project tensorboard prometheus_port",
    },
}
_WITHOUT = ("rewards.", "objective.")  # any keys: rewards are computed when episodes are read
EFFECTS: dict[str, Effect] = {
    f"{section}.{name}".lstrip("."): effect
    for effect, sections in _TABLE.items()
    for section, names in sections.items()
    for name in names.split()
}
_COUNTED: dict[str, Callable[[Any], Any]] = {
    "rollouts.http.frozen_urls": bool,  # only whether there are servers, not their addresses
}


def effect_of(key: str) -> Effect:
    """What changing the dotted ``key`` affects."""
    if key.startswith("rollouts.engine_config."):
        return Effect.OWN
    return EFFECTS.get(key, Effect.NONE if key.startswith(_WITHOUT) else Effect.ALL)


def description(config: Config, policy: Mapping[str, str], *, spawning: bool, chat: bool) -> dict[str, Any]:
    """Everything that the episodes of an evaluation depend on, as a JSON object.

    ``policy``: its identity, e.g. digests of weights, or a server's URL and model. ``spawning``: whether it
    may spawn (``rollouts.swarm`` and the label). ``chat``: a chat server's model. Raises ValueError or
    FileNotFoundError if a named file cannot be read.
    """
    wanted = {Effect.ALL, Effect.CHAT if chat else Effect.OWN}
    environment = config.envs.build()
    shown = prompts_digest(environment.tools(), config.rollouts.prompts, chat_format(config.model, config.rollouts))
    settings = {
        key: _COUNTED.get(key, _same)(value)
        for key, value in _leaves(config.model_dump(mode="json", exclude={"envs"}))
        if value is not None and effect_of(key) in wanted
    }
    own = {
        f"envs.{config.envs.name}.{key}": value
        for key, value in config.envs.config.model_dump(mode="json").items()
        if value is not None and key not in environment.neutral and key not in environment.digest()
    }
    return {
        "policy": dict(policy),
        "settings": settings | own | {"rollouts.swarm": spawning},
        "content": _contents(config.envs, environment, config.eval.split, config.model.init if chat else None)
        | _scoring(config.rewards),
        "code": {"version": VERSION, "prompts": shown},
    }


def identity(parts: Mapping[str, Any]) -> str:
    """Twelve hex digits, equal exactly for equal descriptions."""
    return _digest(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode())[:12]


def policy_digest(folder: Path) -> str:
    """A hash of the policy in ``folder``: weights and vocabulary. FileNotFoundError if one is missing."""
    return _digest(f"{file_digest(folder / _WEIGHTS)} {policy_vocabulary(folder)}".encode())


def policy_vocabulary(folder: Path) -> str:
    """A hash of the tokenizer's file and chat template in ``folder``; FileNotFoundError without the former."""
    found = [folder / name for name in _TOKENIZERS if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} has no tokenizer: neither {' nor '.join(_TOKENIZERS)}")
    template = folder / "chat_template.jinja"
    return file_digest(found[0]) + (file_digest(template) if template.is_file() else "")


def tasks_digest(tasks: list[Task]) -> str:
    """A hash of tasks with gold, whatever file they came from."""
    return _digest(json.dumps([task.to_row() for task in tasks], sort_keys=True, ensure_ascii=False).encode())


def prompts_digest(tools: tuple[ToolSpec, ...], prompts: PromptsConfig, chat: ChatFormat) -> str:
    """A hash of what orchestrators and sub-agents read before the question, rendered in the chat format."""
    message = {"role": "system", "content": prompts.orchestrator}
    declared = [[tool.to_openai() for tool in offered] for offered in ((*tools, *prompts.spawning), tools)]
    shown = [chat.conversation([message], offered) for offered in declared]
    return _digest(json.dumps(shown, ensure_ascii=False).encode())[:16]


def _contents(envs: EnvsFields, environment: Environment, split: str, vocabulary: Path | None) -> dict[str, str]:
    """Digests of named files, except weights, which are part of the policy.

    ``vocabulary``: ``model.init`` if the episodes are counted in it; our own policies bring theirs.
    """
    found = {f"envs.{envs.name}.{key}": digest for key, digest in environment.digest().items()}
    if envs.tasks is not None:
        found["envs.tasks"] = tasks_digest(load_tasks(envs.tasks, split))
    if vocabulary is not None:
        found["model.init"] = policy_vocabulary(vocabulary)
    return found


def _scoring(rewards: Reward) -> dict[str, str]:
    """Digests of what scores episodes, if anything but their answers does."""
    found: dict[str, str] = {}
    if rewards.function is not None:
        source = inspect.getsourcefile(score_function(rewards.function))
        found["rewards.function"] = f"{rewards.function} {file_digest(Path(source)) if source else ''}"
    if rewards.judge is not None and rewards.judge.prompt is not None:
        found["rewards.judge.prompt"] = file_digest(rewards.judge.prompt)
    if rewards.command != CommandSection():
        newer = {"reads"} if rewards.command.reads == "file" else None  # a key that older digests do not have
        found["rewards.command"] = _digest(rewards.command.model_dump_json(exclude=newer).encode())
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict) and key not in EFFECTS:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _same(value: Any) -> Any:
    return value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
