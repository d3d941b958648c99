"""Our own engine behind vLLM's routes, for tests of runs whose policy is on a server. It is not vLLM."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envs.world.site.server import SocketServer
from model.decoder import export_weights
from model.kimi.config import ModelConfig
from model.kimi.files import checkpoint
from model.kimi.transformer import Transformer
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine


class StandIn:
    """``requests``: how often each path was asked; ``forget_after``: generations after which it is as if restarted;
    ``lie_at``: the generation whose log-probs are above 0."""

    def __init__(self, model: ModelConfig) -> None:
        self.engine = EmbeddedEngine(model)
        self.policy: Transformer | None = None
        self.label, self.updates, self.calls = "default", 0, 0
        self.requests: dict[str, int] = {}
        self.forget_after = self.lie_at = -1

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.requests[path] = self.requests.get(path, 0) + 1
        body = json.loads(await request.body() or b"{}")
        if path == "/collective_rpc":
            self.policy = checkpoint.load(body["kwargs"]["weights_path"]).eval()
            self.updates += 1
            await self.engine.update(Update(version=self.updates, weights=export_weights(self.policy)))
        if path == "/update_weight_version":
            self.label = body["new_version"]
        if path != "/inference/v1/generate":
            return JSONResponse({})
        params = body["sampling_params"]
        if params.get("prompt_logprobs") is not None:
            return JSONResponse({"prompt_logprobs": self.scores(body["token_ids"])})
        return JSONResponse({"choices": [await self.generate(body["token_ids"], params)]})

    def scores(self, tokens: list[int]) -> list[Any]:
        assert self.policy is not None
        ids = torch.tensor([tokens])
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0, 0] = False
        with torch.no_grad():
            found = self.policy(ids, mask)[0].tolist()
        return [None, *({str(t): {"logprob": value}} for t, value in zip(tokens[1:], found, strict=True))]

    async def generate(self, tokens: list[int], params: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if self.calls == self.forget_after:
            self.label = "default"
        sampling = Sampling(
            seed=params.get("seed", 0),
            temperature=params["temperature"],
            top_p=params["top_p"],
            max_new_tokens=params["max_tokens"],
            stop=tuple(params["stop_token_ids"]),
        )
        session = str(self.calls)
        found = await self.engine.generate(tokens, sampling, session=session, deadline_s=60)
        await self.engine.release(session)
        routes = None
        if (start := params.get("routed_experts_prompt_start")) is not None and found.routes is not None:
            file = io.BytesIO()
            np.save(file, found.routes[start:].astype(np.uint8))
            routes = base64.b64encode(file.getvalue()).decode()
        logprobs = [0.5] * len(found.tokens) if self.calls == self.lie_at else found.logprobs
        pairs = zip(found.tokens, logprobs, strict=True)
        return {
            "finish_reason": str(found.finish),
            "logprobs": {"content": [{"token_id": token, "logprob": value} for token, value in pairs]},
            "weight_versions": [{"version": self.label, "start": 0, "end": len(found.tokens)}],
            "routed_experts": routes,
        }


@contextmanager
def stand_in(model: ModelConfig) -> Iterator[tuple[str, StandIn]]:
    """(url, the server) for the time of the block."""
    served = StandIn(model)
    app = Starlette(routes=[Route("/{path:path}", served.answer, methods=["GET", "POST"])])
    server = SocketServer(app)
    try:
        yield server.url, served
    finally:
        server.close()
