"""A server that replays recorded exchanges: each request must be the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

DATA = Path(__file__).parents[1] / "data"


class Replay(httpx.AsyncBaseTransport):
    """The exchanges of tests/data/KIND/exchanges.json; ``folder`` replaces FOLDER."""

    def __init__(self, kind: str, folder: Path = Path("FOLDER")) -> None:
        recorded = json.loads((DATA / kind / "exchanges.json").read_text())
        self.probe, self.logprobs = recorded["wanted"]["probe"], recorded["wanted"]["logprobs"]
        self.exchanges, self.folder = recorded["exchanges"], str(folder)
        self.done: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as recorded; AssertionError for another request."""
        if request.url.path == "/health":
            return httpx.Response(200, request=request)
        while self.exchanges[0]["path"] == "/health":
            self.exchanges.pop(0)
        exchange = self.exchanges.pop(0)
        self.done.append(exchange)
        body = json.loads(request.content.decode().replace(self.folder, "FOLDER")) if request.content else None
        asked = (request.method, request.url.raw_path.decode(), _plain(body))
        assert asked == (exchange["method"], exchange["path"], _plain(exchange["body"]))
        content = b"" if exchange["answer"] is None else json.dumps(exchange["answer"]).encode()
        return httpx.Response(exchange["status"], content=content, request=request)


def _plain(body: Any) -> Any:
    """``body`` without values that differ from run to run: SGLang's seed, the probe's salt."""
    if not isinstance(body, dict):
        return body
    out = dict(body)
    if str(out.get("cache_salt", "")).lower().startswith("probe"):
        out["cache_salt"] = "PROBE"
    params = dict(out.get("sampling_params") or {})
    if "sampling_seed" in params:
        params["sampling_seed"] = "SEED"
    return {**out, "sampling_params": params}
