"""Records the exchanges of our client with a real vLLM CPU server, for tests without a server.

    python benchmarks/record_vllm.py --python VLLM_ENVIRONMENT/bin/python --out tests/data/vllm/exchanges.json

Serves the shipped cold start, updates weights in buckets and from a folder, samples with and without a stop
token, and sends invalid requests. Requests are kept with their answers, in order; folders are written as
FOLDER.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from model.kimi.family import Kimi
from model.policy_files import load_policy
from parl.serve.server_weights import Deliveries
from rollouts.config import HttpConfig
from rollouts.engine.base import Delivery, Sampling
from rollouts.engine.servers.dialects import Vllm
from rollouts.engine.servers.http import HttpEngine
from rollouts.engine.servers.weight_update import Deliverer

ROOT = Path(__file__).resolve().parents[1]
PROMPT = list(range(40, 60))


class Recording(httpx.AsyncHTTPTransport):
    """Passes requests on and keeps them with their answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.exchanges = str(folder), []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange."""
        response = await super().handle_async_request(request)
        body = await response.aread()
        said = json.loads(body) if body else None
        asked = json.loads(request.content.decode().replace(self.folder, "FOLDER")) if request.content else None
        path = request.url.raw_path.decode()
        if not (path == "/health" and response.status_code == 200):  # how often it is asked is a matter of time
            exchange: dict[str, Any] = {"method": request.method, "path": path, "body": asked}
            self.exchanges.append(exchange | {"status": response.status_code, "answer": said})
        return httpx.Response(response.status_code, content=body, request=request)


async def scenario(url: str, first: Delivery, second: Delivery, transport: Recording, restart: str) -> None:
    """The recorded scenario; the tests run the same."""
    engine = HttpEngine(url, Vllm(), pool="policy", longest=2048, transport=transport)
    await Deliverer(engine, HttpConfig(restart=restart, weights="transfer", update_s=1800)).deliver(first)
    deliverer = Deliverer(engine, HttpConfig(weights="transfer"))
    await deliverer.deliver(second)
    sampling = Sampling(seed=5, temperature=1.0, max_new_tokens=6)
    sampled = await engine.generate(PROMPT, sampling, session="a", deadline_s=60)
    stopping = Sampling(seed=5, temperature=1.0, max_new_tokens=6, stop=(sampled.tokens[2],))
    await engine.generate(PROMPT, stopping, session="b", deadline_s=60)
    await engine.generate(PROMPT, Sampling(seed=5, temperature=0.0, max_new_tokens=3), session="c", deadline_s=60)
    for wrong in ([10**6], PROMPT * 200):
        try:
            await engine.call(engine.dialect.score(wrong, salt="wrong"), 60)
        except ValueError as error:
            print(f"refused: {error}")
    await engine.close()


def main() -> None:
    """Start, record, write."""
    parser = argparse.ArgumentParser(description="record exchanges with a vLLM CPU server")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vllm")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "data" / "vllm" / "exchanges.json")
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    [starter] = (ROOT / "configs" / "starters").iterdir()
    weights, model, _, _ = load_policy(starter, Kimi())
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        server = [sys.executable, str(ROOT / "benchmarks" / "vllm_server.py"), "--python", given.python, "--transfer"]
        server += ["--port", str(port), "--dtype", "float32", "--length", "2048", "--pid-file", str(place / "vllm.pid")]
        server += ["--log", str(place / "vllm.log")]
        deliveries = Deliveries(place, model, starter)
        first = deliveries.write("policy", 0, weights)
        second = deliveries.write("policy", 1, {name: array * 1.02 for name, array in weights.items()})
        transport = Recording(place)
        restart = shlex.join([*server, "--folder"]) + " {folder}"
        try:
            asyncio.run(scenario(f"http://127.0.0.1:{port}", first, second, transport, restart))
        finally:
            subprocess.run([*server, "--stop"], check=True, timeout=120)
    wanted = {"probe": first.probe, "logprobs": [first.logprobs, second.logprobs]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(exchange) for exchange in transport.exchanges)
    given.out.write_text(f'{{"wanted": {json.dumps(wanted)},\n"exchanges": [\n{lines}\n]}}\n')
    print(f"{len(transport.exchanges)} exchanges in {given.out}")


if __name__ == "__main__":
    main()
