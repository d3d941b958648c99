"""``parl gateway``: serves a policy over OpenAI's API, records clients' episodes, and makes rows of them."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from model.decoder import Weights
from model.family import Shape, family_of
from model.policy_files import load_policy, with_weights
from model.tokenizer.tokenizer import Tokenizer
from parl.config.family import family_at
from parl.errors import UserError
from parl.learn.rows import Row, step_rows
from parl.machine.ownership import owning
from parl.serve.export import policy_folder
from parl.serve.server_weights import probe_logprobs, probe_tokens
from parl.shown.terminal import echo
from rollouts.config import HttpConfig, RolloutsConfig
from rollouts.engine.address import shown
from rollouts.engine.base import Engine, Place, Update
from rollouts.engine.client import ServerFault
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.engine.servers.served import ServedEngine
from rollouts.engine.servers.weight_update import Verifier
from rollouts.episode import Episode
from rollouts.gateway.app import KIND, Gateway, GatewaySettings
from rollouts.gateway.guard import Access, is_loopback, wrong_hosts, wrong_origins
from rollouts.gateway.record import is_reward
from rollouts.gateway.socket import server_config
from rollouts.store.store import EpisodeStore

KEY_VARIABLE = "PARL_GATEWAY_KEY"
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
    allow_hosts: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
) -> None:
    """Serve the policy of ``run`` until interrupted. ``engine``: vllm or sglang, the server at ``url``.

    UserError: no policy, it cannot be loaded, the server computes something else, or the address is not
    available or not allowed without a key.
    """
    access = access_of(host, allow_hosts, allow_origins, os.environ.get(KEY_VARIABLE) or None)
    for option, value, most in (("--temperature", temperature, 2.0), ("--top-p", top_p, 1.0)):
        if value is not None and not (math.isfinite(value) and 0 <= value <= most):
            raise UserError(f"{option} {value}: must be a number from 0 to {most:g}")
    if (engine == "embedded") != (url is None):
        raise UserError(
            f"--engine {engine} --url {url and shown(url)}: give both for a server (vllm or sglang), neither without"
        )
    folder = policy_folder(run)
    try:
        weights, model, tokenizer, meta = load_policy(folder, family_at(folder))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{folder} cannot be served: {error}") from error
    if model.pictures is not None:
        raise UserError(f"{folder} sees, and the gateway takes no pictures")
    version = int(meta.get("policy_version", 0))
    settings = GatewaySettings(
        model=run.name,
        longest=model.max_position_embeddings,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    sockets = bound_sockets(host, port, keyed=access.key is not None)
    store = _store(record) if record else None
    where = f"http://{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}/v1"

    async def run_server() -> None:
        if url is None:
            chosen: Engine = EmbeddedEngine(model)
            await chosen.update(Update(version=version, weights=weights))
        else:
            chosen = await _server(url, engine, model, tokenizer, weights, version)
        chat = family_of(model).chat(model, tokenizer, thinking=thinking)
        app = Gateway(chosen, chat, settings, store, access).app()
        echo(f"serving {folder} as {settings.model!r} at {where}")
        await uvicorn.Server(server_config(app)).serve(sockets=sockets)

    with owning(record, "a recording", "name another folder with --record") if record else nullcontext():
        asyncio.run(run_server())


def access_of(host: str, hosts: Sequence[str], origins: Sequence[str], key: str | None) -> Access:
    """Access rules from the command line and the environment. UserError names what is wrong."""
    if wrong := wrong_hosts(hosts):
        raise UserError(f"--allow-host {wrong[0]!r}: give the name or address of one host, without scheme and port")
    if wrong := wrong_origins(origins):
        advice = "give scheme://host[:port] of one site; * and null stand for any page and are not allowed"
        raise UserError(f"--allow-origin {wrong[0]!r}: {advice}")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY_VARIABLE} holds what no header can carry: letters, digits and signs, without spaces")
    own = () if host in ("0.0.0.0", "::") or wrong_hosts([host]) else (host,)
    return Access(hosts=(*own, *hosts), origins=tuple(origins), key=key)


def bound_sockets(host: str, port: int, *, keyed: bool) -> list[socket.socket]:
    """Sockets at all addresses of ``host``. UserError if unavailable, or beyond loopback without a key."""
    if not host or not 0 <= port < 65_536:
        raise UserError(f"--host {host!r} --port {port}: give a name or address, and a port from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host!r}: no such address ({error})") from None
    open_to_all = sorted({str(address[0]) for *_, address in found if not is_loopback(str(address[0]))})
    if open_to_all and not keyed:
        raise UserError(
            f"--host {host} ({', '.join(open_to_all)}) is reached from other machines: set {KEY_VARIABLE} to a key that"
            " clients send as their API key, or serve on 127.0.0.1"
        )
    sockets: list[socket.socket] = []
    for family, kind, proto, _, address in dict.fromkeys(found):
        one = socket.socket(family, kind, proto)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        same = sockets[0].getsockname()[1] if sockets else port
        try:
            one.bind((address[0], same, *address[2:]))
        except OSError as error:
            one.close()
            if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:  # this machine may lack some addresses of a name
                raise UserError(f"--host {host} --port {same}: {error.strerror}; choose another with --port") from None
        else:
            sockets.append(one)
    if not sockets:
        raise UserError(f"--host {host}: this machine has none of its addresses")
    return sockets


def _store(folder: Path) -> EpisodeStore:
    try:
        return EpisodeStore(folder)
    except OSError as error:
        raise UserError(f"--record {folder}: no folder can be made there ({error.strerror})") from None


async def _server(url: str, kind: str, model: Shape, tokenizer: Tokenizer, weights: Weights, version: int) -> Engine:
    """The engine at ``url``, after verifying that it serves these weights."""
    try:
        rollouts = RolloutsConfig.model_validate({"engine": kind, "http": {"urls": [url], "without_routes": "live"}})
    except ValidationError as error:  # its own text quotes the address unredacted
        said = "; ".join(one["msg"] for one in error.errors(include_url=False))
        raise UserError(f"--engine {kind} --url {shown(url)}: {said}") from None
    probe = probe_tokens(model, tokenizer)
    wanted = probe_logprobs(with_weights(model, weights), probe)
    try:
        place = Place(pool="policy", number=0, model=model, rollouts=rollouts, tokenizer="", url=url)
        engine = ServedEngine.of(place, kind)
        await engine.wait_healthy(_START_S)
        for call in engine.dialect.label(str(version)):
            await engine.call(call, _START_S)
        served = await engine.score(probe, deadline_s=_START_S)
    except (ValueError, ServerFault, TimeoutError) as error:
        raise UserError(f"--url {error}") from None
    _, wrong = Verifier(HttpConfig().tolerance).judge(served, wanted, fresh=True)
    if wrong:
        raise UserError(f"{url} does not serve this policy: {wrong}; start it from what parl export writes")
    engine.policy_version = version
    return engine


def recorded_episodes(folder: Path) -> list[Episode]:
    """All episodes recorded by a gateway in ``folder``, in the order of their ends."""
    store = EpisodeStore(folder)
    shards = [store.read(step, KIND) for step in store.steps(KIND)]
    return [episode for shard in shards if shard is not None for episode in shard[0]]


def recorded_rows(
    episodes: Sequence[Episode], *, temperature: float, routed: bool, normalise_std: bool = False
) -> list[Row]:
    """Rows for the learner. Episodes of one task are a group, whose mean reward is the baseline.

    ValueError for tokens sampled at another temperature, and for a reward that is not a finite number.
    """
    for episode in episodes:
        if not episode.void and not is_reward(episode.rewards.get("total")):
            name = episode.metrics.get("gateway/episode")
            found = episode.rewards.get("total")
            raise ValueError(f"episode {name!r} of task {episode.task.key} has the reward {found!r}: leave it out")
        if not all(math.isfinite(logprob) for trace in episode.traces for logprob in trace.logprobs):
            raise ValueError(f"episode {episode.metrics.get('gateway/episode')!r} has log-probs that are not finite")
        sampled = episode.metrics.get("gateway/temperatures", [])
        if any(other != temperature for other in sampled):
            name = episode.metrics.get("gateway/episode")
            raise ValueError(
                f"episode {name!r} was sampled at temperatures {sampled}, the learner's is {temperature}: serve with"
                f" parl gateway --temperature {temperature:g}"
            )
    return step_rows(episodes, routed=routed, normalise_std=normalise_std)
