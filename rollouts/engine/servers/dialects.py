"""The APIs of vLLM and SGLang: paths, requests and answers of their token-in, token-out interfaces. No torch.

Written against vLLM 0.32 (``/inference/v1/generate``, whose answers carry the weights' version; start it with
``--enable-scale-out``, and ``VLLM_SERVER_DEV_MODE=1`` for weight updates) and SGLang's source of 2026
(``/generate``). Both return log-probs before ``top_p``; vLLM's are of temperature 1 by default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rollouts.engine.base import Finish, Sampling
from rollouts.engine.client import BadAnswer, check
from rollouts.engine.client import Request as Call
from rollouts.engine.schemas import (
    SglangAnswer,
    SglangFinish,
    VllmAnswer,
    VllmPulled,
    VllmScores,
    VllmSpan,
    int32s,
    npy,
)
from rollouts.engine.servers.blobs import Manifest

_MOST_ROUTES = 2**31  # numbers; the request determines the right count


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A server's completion. ``routes``: as sent, int array [F, layers, K] or flat."""

    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    version: str  # label of the weights that sampled it
    routes: np.ndarray | None = None
    prompt: list[int] | None = None  # the prompt that the server reports, and its length, if it does
    prompt_tokens: int | None = None


class Dialect(Protocol):
    """One kind of server."""

    name: str

    def generate(self, prompt: list[int], sampling: Sampling, *, salt: str, routes_from: int | None) -> Call:
        """Continue ``prompt``; ``routes_from``: with the experts of positions from there on, None: without."""
        ...

    def answer(self, tree: dict[str, Any]) -> Answer:
        """Parse the answer of ``generate``. BadAnswer if something is missing."""
        ...

    def score(self, tokens: list[int], *, salt: str) -> Call:
        """Request the log-probs of ``tokens``."""
        ...

    def scores(self, tree: dict[str, Any], tokens: list[int]) -> list[float]:
        """Log-probs of all ``tokens`` except the first."""
        ...

    def pause(self) -> Call:
        """Accept no new requests, and end or hold running ones."""
        ...

    def resume(self) -> Call:
        """Resume."""
        ...

    def reload(self, folder: Path, version: str) -> list[Call]:
        """Load all weights from ``folder`` and clear the caches."""
        ...

    def transfer(self, files: Sequence[Path], version: str) -> list[Call]:
        """Load the weights in ``files``, one bucket each, and clear the caches."""
        ...

    def pull(self, manifest: Manifest) -> Call:
        """Begin to fetch a version's shards to the server's own disk, while it goes on."""
        ...

    def pulled(self) -> Call:
        """Ask how far that is."""
        ...

    def pulled_state(self, tree: dict[str, Any]) -> list[dict[str, Any]]:
        """The answer: for each worker, the fields of :class:`rollouts.engine.servers.puller.Pulled`."""
        ...

    def load_pulled(self, manifest: Manifest, version: str) -> list[Call]:
        """Load the fetched shards, one bucket each, and clear the caches."""
        ...

    def label(self, version: str) -> list[Call]:
        """Label the loaded weights ``version``."""
        ...

    def refused(self, status: int, text: str) -> str:
        """The fix for a server's error, if known; else an empty string."""
        ...


def noise(sampling: Sampling, position: int, bits: int) -> int:
    """A seed for one call: a function of the stream's key and the call's position in it."""
    digest = hashlib.blake2b(f"{sampling.seed}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - bits)


class Vllm:
    """vLLM 0.32 and later."""

    name = "vllm"

    def generate(self, prompt: list[int], sampling: Sampling, *, salt: str, routes_from: int | None) -> Call:
        """``/inference/v1/generate``."""
        params: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(sampling.stop),
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        }
        if sampling.temperature > 0:
            params["seed"] = noise(sampling, len(prompt), 63)
        if routes_from is not None:
            params["routed_experts_prompt_start"] = routes_from
        return Call(
            path="/inference/v1/generate", body={"token_ids": prompt, "sampling_params": params, "cache_salt": salt}
        )

    def answer(self, tree: dict[str, Any]) -> Answer:
        """Tokens are read with their log-probs, so that both have equal length."""
        whole = check(VllmAnswer, tree, "vLLM")
        [choice] = whole.choices
        if choice.logprobs is None:
            raise BadAnswer("vLLM gave no log-probs")
        tokens = [item.token_id for item in choice.logprobs.content]
        _same(tokens, choice.token_ids, "choices.0.token_ids")
        return Answer(
            tokens=tokens,
            logprobs=[item.logprob for item in choice.logprobs.content],
            finish=_finish(choice.finish_reason),
            version=_one(choice.weight_versions or [], len(tokens)),
            routes=None if choice.routed_experts is None else npy(choice.routed_experts, _MOST_ROUTES),
            prompt=whole.prompt_token_ids,
            prompt_tokens=whole.usage.prompt_tokens if whole.usage else None,
        )

    def score(self, tokens: list[int], *, salt: str) -> Call:
        """A prompt with its log-probs; one new token is the minimum."""
        params = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        return Call(
            path="/inference/v1/generate", body={"token_ids": tokens, "sampling_params": params, "cache_salt": salt}
        )

    def scores(self, tree: dict[str, Any], tokens: list[int]) -> list[float]:
        """``prompt_logprobs``: for each position a dictionary by token id."""
        positions = check(VllmScores, tree, "vLLM").prompt_logprobs
        if positions is None or len(positions) != len(tokens):
            raise BadAnswer("vLLM gave no log-probs of the prompt")
        found = [(position or {}).get(str(token)) for token, position in zip(tokens[1:], positions[1:], strict=True)]
        if any(one is None for one in found):
            raise BadAnswer("vLLM: prompt_logprobs lacks tokens of the prompt that was sent")
        return [one.logprob for one in found if one is not None]

    def pause(self) -> Call:
        """Waits for running requests."""
        return Call(path="/pause", query={"mode": "wait"})

    def resume(self) -> Call:
        """See :class:`Dialect`."""
        return Call(path="/resume")

    def reload(self, folder: Path, version: str) -> list[Call]:
        """Through the workers' own method."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        return [Call(path="/collective_rpc", body=body), *self.label(version)]

    def transfer(self, files: Sequence[Path], version: str) -> list[Call]:
        """vLLM's protocol with the back end of ``rollouts.engine.servers.vllm_receiver``."""
        return self._buckets([{"path": str(file)} for file in files], version)

    def pull(self, manifest: Manifest) -> Call:
        """A method of our worker extension; vLLM passes strings only."""
        return Call(path="/collective_rpc", body={"method": "parl_pull", "kwargs": {"manifest": manifest.text()}})

    def pulled(self) -> Call:
        """Another one."""
        return Call(path="/collective_rpc", body={"method": "parl_pulled"})

    def pulled_state(self, tree: dict[str, Any]) -> list[dict[str, Any]]:
        """One of each worker."""
        return [one.model_dump() for one in check(VllmPulled, tree, "vLLM").results]

    def load_pulled(self, manifest: Manifest, version: str) -> list[Call]:
        """As ``transfer``, by the shards' names."""
        return self._buckets([{"sha256": shard.whole.sha256} for shard in manifest.shards], version)

    def _buckets(self, infos: Sequence[dict[str, str]], version: str) -> list[Call]:
        buckets = [Call(path="/update_weights", body={"update_info": info}) for info in infos]
        return [
            Call(path="/init_weight_transfer_engine", body={"init_info": {}}),
            Call(path="/start_weight_update"),
            *buckets,
            Call(path="/finish_weight_update", body={"weight_version": version}),
            Call(path="/reset_prefix_cache"),
        ]

    def label(self, version: str) -> list[Call]:
        """Every completion returns the label."""
        return [Call(path="/update_weight_version", body={"new_version": version}), Call(path="/reset_prefix_cache")]

    def refused(self, status: int, text: str) -> str:
        """Command-line options that vLLM needs."""
        if status == 403 and "scale-out" in text.lower():
            return "start vLLM with --enable-scale-out: only those routes take and give token ids"
        if status == 404:
            return "start vLLM with VLLM_SERVER_DEV_MODE=1, which has the routes that update weights"
        if "Weight transfer not configured" in text:
            return (
                "start vLLM with the switches in rollouts/engine/servers/vllm_receiver.py,"
                " or set rollouts.http.weights=reload"
            )
        return ""


class Sglang:
    """SGLang's native interface."""

    name = "sglang"

    def generate(self, prompt: list[int], sampling: Sampling, *, salt: str, routes_from: int | None) -> Call:
        """``/generate``. The seed counts only with ``--enable-deterministic-inference``."""
        params: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(sampling.stop),
            "sampling_seed": noise(sampling, len(prompt), 31),
        }
        body: dict[str, Any] = {
            "input_ids": prompt,
            "sampling_params": params,
            "return_logprob": True,
            "logprob_start_len": -1,
            "cache_salt": salt,
        }
        if routes_from is not None:
            body |= {"return_routed_experts": True, "routed_experts_start_len": routes_from}
        return Call(path="/generate", body=body)

    def answer(self, tree: dict[str, Any]) -> Answer:
        """Tokens are read with their log-probs, so that both have equal length."""
        whole = check(SglangAnswer, tree, "SGLang")
        meta = whole.meta_info
        if meta.output_token_logprobs is None:
            raise BadAnswer("SGLang gave no log-probs")
        tokens = [token for _, token, _ in meta.output_token_logprobs]
        _same(tokens, whole.output_ids, "output_ids")
        reason = meta.finish_reason
        return Answer(
            tokens=tokens,
            logprobs=_all_there(value for value, _, _ in meta.output_token_logprobs),
            finish=_finish(reason.type if isinstance(reason, SglangFinish) else reason),
            version=str(meta.weight_version),
            routes=None if meta.routed_experts is None else int32s(meta.routed_experts),
            prompt_tokens=meta.prompt_tokens,
        )

    def score(self, tokens: list[int], *, salt: str) -> Call:
        """Log-probs from the first position on."""
        params = {"temperature": 0.0, "max_new_tokens": 1}
        settings = {"return_logprob": True, "logprob_start_len": 0, "cache_salt": salt}
        return Call(path="/generate", body={"input_ids": tokens, "sampling_params": params, **settings})

    def scores(self, tree: dict[str, Any], tokens: list[int]) -> list[float]:
        """``input_token_logprobs``: triples (log-prob, id, text), the first without a log-prob."""
        triples = check(SglangAnswer, tree, "SGLang").meta_info.input_token_logprobs
        if triples is None or [token for _, token, _ in triples[1:]] != tokens[1:]:
            raise BadAnswer("SGLang gave no log-probs of the prompt")
        return _all_there(value for value, _, _ in triples[1:])

    def pause(self) -> Call:
        """Running requests go back to the queue."""
        return Call(path="/pause_generation", body={"mode": "retract"})

    def resume(self) -> Call:
        """See :class:`Dialect`."""
        return Call(path="/continue_generation", body={})

    def reload(self, folder: Path, version: str) -> list[Call]:
        """From disk, with label and cache flush in one call."""
        body = {"model_path": str(folder), "weight_version": version, "flush_cache": True}
        return [Call(path="/update_weights_from_disk", body=body)]

    def transfer(self, files: Sequence[Path], version: str) -> list[Call]:
        """SGLang takes tensors only from processes on its own GPUs."""
        raise ValueError("rollouts.http.weights=transfer needs rollouts.engine=vllm; SGLang: set it to reload")

    def pull(self, manifest: Manifest) -> Call:
        """SGLang loads no extension of ours."""
        raise ValueError("rollouts.http.weights=pull needs rollouts.engine=vllm; SGLang: set it to reload")

    def pulled(self) -> Call:
        """Never called."""
        raise ValueError("SGLang pulls nothing")

    def pulled_state(self, tree: dict[str, Any]) -> list[dict[str, Any]]:
        """Never called."""
        raise ValueError("SGLang pulls nothing")

    def load_pulled(self, manifest: Manifest, version: str) -> list[Call]:
        """Never called."""
        raise ValueError("SGLang pulls nothing")

    def label(self, version: str) -> list[Call]:
        """Every completion returns the label."""
        return [
            Call(path="/update_weight_version", body={"new_version": version, "abort_all_requests": False}),
            Call(path="/flush_cache"),
        ]

    def refused(self, status: int, text: str) -> str:
        """No known fixes beyond SGLang's own text."""
        return ""


DIALECTS: dict[str, Dialect] = {"vllm": Vllm(), "sglang": Sglang()}


def _finish(reason: str | None) -> Finish:
    if reason not in ("stop", "length"):
        raise BadAnswer(f"the server ended a completion with {reason!r}, which is neither stop nor length")
    return Finish(reason)


def _one(spans: Sequence[VllmSpan], tokens: int) -> str:
    """The single version of all ``tokens``; spans with positions must cover all of them."""
    versions = {span.version for span in spans}
    if len(versions) > 1:
        raise BadAnswer(f"one completion was sampled by weights of versions {sorted(versions)}")
    at = 0
    for span in spans:
        if span.start is not None and span.end is not None:
            if span.start != at or span.end < at:
                raise BadAnswer(f"weight_versions: tokens from {at} on are in no span, or in two")
            at = span.end
    if spans and at not in (0, tokens):
        raise BadAnswer(f"weight_versions: of {tokens} tokens {at} have a version")
    return next(iter(versions), "")


def _same(tokens: list[int], echoed: list[int] | None, name: str) -> None:
    if echoed is not None and echoed != tokens:
        raise BadAnswer(f"{name} has other tokens than those that have log-probs")


def _all_there(values: Iterable[float | None]) -> list[float]:
    found = list(values)
    if None in found:
        raise BadAnswer("SGLang: a token has no log-prob")
    return [value for value in found if value is not None]
