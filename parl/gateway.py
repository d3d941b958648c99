"""``parl gateway``: serves a policy over OpenAI's API, records what harnesses do with it, and makes rows of that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import uvicorn

from model.checkpoint import load_policy
from model.config import ModelConfig
from model.decoder import Weights
from model.tokenizer import Tokenizer
from parl.advantage import Row, step_rows
from parl.errors import UserError
from parl.export import policy_folder
from parl.ownership import owning
from parl.served import probe_logprobs, probe_tokens, with_weights
from rollouts.config import HttpConfig, RolloutsConfig
from rollouts.engine.base import Engine
from rollouts.engine.embedded import EmbeddedEngine
from rollouts.engine.handover import Verifier
from rollouts.engine.served import connect
from rollouts.episode import Episode
from rollouts.gateway import KIND, Gateway, GatewaySettings
from rollouts.store import EpisodeStore

_START_S = 60.0


def serve(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    record: Path | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    thinking: bool = False,
    seed: int = 1,
    engine: str = "embedded",
    url: str | None = None,
) -> None:
    """Serve the policy of ``run`` until interrupted. ``engine`` vllm or sglang: through the server at ``url``.

    UserError where there is no policy, it cannot be loaded, or the server computes something else.
    """
    if (engine == "embedded") != (url is None):
        raise UserError(f"--engine {engine} --url {url}: give both for a server (vllm or sglang), neither without")
    folder = policy_folder(run)
    try:
        weights, model, tokenizer, meta = load_policy(folder)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{folder} cannot be served: {error}") from error
    if model.vision is not None:
        raise UserError(f"{folder} sees, and the gateway takes no pictures")
    version = int(meta.get("policy_version", 0))
    settings = GatewaySettings(
        model=run.name,
        longest=model.max_position_embeddings,
        temperature=temperature,
        top_p=top_p,
        thinking=thinking,
        seed=seed,
    )
    store = EpisodeStore(record) if record else None

    async def run_server() -> None:
        if url is None:
            chosen: Engine = EmbeddedEngine(model)
            await chosen.update(version, weights)
        else:
            chosen = await _server(url, engine, model, tokenizer, weights, version)
        app = Gateway(chosen, tokenizer, settings, store).app()
        print(f"serving {folder} as {settings.model!r} at http://{host}:{port}/v1", flush=True)
        await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).serve()

    with owning(record, "a recording", "name another folder with --record") if record else nullcontext():
        asyncio.run(run_server())


async def _server(
    url: str, kind: str, model: ModelConfig, tokenizer: Tokenizer, weights: Weights, version: int
) -> Engine:
    """The engine at ``url``, once it has shown that it serves these weights."""
    try:
        rollouts = RolloutsConfig.model_validate({"engine": kind, "http": {"urls": [url], "without_routes": "live"}})
    except ValueError as error:
        raise UserError(f"--engine {kind} --url {url}: {error}") from error
    engine = connect(model, rollouts, pool="policy", url=url)
    await engine.wait_healthy(_START_S)
    for call in engine.dialect.label(str(version)):
        await engine.call(call, _START_S)
    probe = probe_tokens(model, tokenizer)
    wanted = probe_logprobs(with_weights(model, weights), probe)
    served = await engine.score(probe, deadline_s=_START_S)
    _, wrong = Verifier(HttpConfig().tolerance).judge(served, wanted, fresh=True)
    if wrong:
        raise UserError(f"{url} does not serve this policy: {wrong}; start it from what parl export writes")
    engine.policy_version = version
    return engine


def recorded_episodes(folder: Path) -> list[Episode]:
    """All episodes that a gateway recorded in ``folder``, in the order of their ends."""
    store = EpisodeStore(folder)
    shards = [store.read(step, KIND) for step in store.steps(KIND)]
    return [episode for shard in shards if shard is not None for episode in shard[0]]


def recorded_rows(
    episodes: Sequence[Episode], *, temperature: float, routed: bool, normalise_std: bool = False
) -> list[Row]:
    """Rows for the learner. Episodes of one task are a group, whose mean reward is the baseline.

    ValueError where tokens were sampled at another temperature: their log-probs would be of another policy.
    """
    for episode in episodes:
        sampled = episode.metrics.get("gateway/temperatures", [])
        if any(other != temperature for other in sampled):
            name = episode.metrics.get("gateway/episode")
            raise ValueError(
                f"episode {name!r} was sampled at temperatures {sampled}, the learner's is {temperature}: serve with"
                f" parl gateway --temperature {temperature:g}"
            )
    return step_rows(episodes, routed=routed, normalise_std=normalise_std)
