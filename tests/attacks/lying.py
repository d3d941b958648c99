"""Lying servers for attacks on our clients: valid answers to spoil, and a socket that sends anything."""

from __future__ import annotations

import base64
import copy
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

PROMPT = [40, 41, 42, 43]
TOKENS = [7, 8, 2]  # the last is the stop token
POSITIONS = len(PROMPT) + len(TOKENS) - 1
Send = Callable[[socket.socket, bytes, int], None]  # socket, request, number of earlier requests


def npy(array: Any) -> str:
    """``array`` in vLLM's format of routes."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def routes() -> Any:
    """Valid experts [F, 2, 2] of four."""
    import numpy as np

    return np.array([[[0, 1], [2, 3]]] * POSITIONS, np.uint8)


def vllm() -> dict[str, Any]:
    """A valid answer to PROMPT with stop token 2."""
    content = [{"token_id": token, "logprob": -0.5} for token in TOKENS]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "token_ids": list(TOKENS),
        "logprobs": {"content": content},
        "weight_versions": [{"version": "0", "start": 0, "end": len(TOKENS)}],
        "routed_experts": npy(routes()),
    }
    usage = {"prompt_tokens": len(PROMPT), "completion_tokens": len(TOKENS)}
    return {"choices": [choice], "usage": usage, "model": "policy", "prompt_token_ids": list(PROMPT)}


def sglang() -> dict[str, Any]:
    """The same from SGLang."""
    flat = base64.b64encode(routes().astype("<i4").tobytes()).decode()
    meta = {
        "finish_reason": {"type": "stop", "matched": 2},
        "output_token_logprobs": [[-0.5, token, None] for token in TOKENS],
        "weight_version": "0",
        "routed_experts": flat,
        "prompt_tokens": len(PROMPT),
        "completion_tokens": len(TOKENS),
    }
    return {"text": "", "output_ids": list(TOKENS), "meta_info": meta}


def chat() -> dict[str, Any]:
    """A valid chat completion with a call."""
    call = {"id": "x1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Kim"}'}}
    message = {"role": "assistant", "content": "Looking.", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}, "model": "m-2026"}


GONE = object()


def spoilt(honest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``honest`` with ``value`` at the dotted ``path``; GONE removes the key."""
    tree = copy.deepcopy(honest)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node: Any = tree
    for part in way:
        node = node[part]
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return tree


def http(body: bytes | dict[str, Any], status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """A whole answer in HTTP's wire format."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(data) if length is None else length}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + data


@contextmanager
def socket_server(send: Send) -> Iterator[str]:
    """A server on loopback that reads each request and lets ``send`` answer; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    count, stop = [0], threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            while not stop.is_set() and (request := _request(connection)):
                count[0] += 1
                send(connection, request, count[0] - 1)

    def accept() -> None:
        with suppress(OSError):
            while not stop.is_set():
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def says(data: bytes) -> Send:
    """Always the same bytes."""
    return lambda connection, request, number: connection.sendall(data)


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")), 0)
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            return b""
        body += part
    return head + b"\r\n\r\n" + body


def engine(answer: Any, kind: str = "vllm", **options: Any) -> Any:
    """Our client of a server that returns ``answer``: a tree, bytes, or the address of a socket."""
    import httpx

    from rollouts.engine.servers.dialects import DIALECTS
    from rollouts.engine.servers.http import HttpEngine

    shape = {"layers": 2, "experts": 2, "dense": 1, "routed": 4, "vocabulary": 100}
    settings: dict[str, Any] = {"pool": "policy", "longest": 1000, **shape, **options}
    url = answer if isinstance(answer, str) else "http://127.0.0.1:1"
    if not isinstance(answer, str):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        settings["transport"] = httpx.MockTransport(lambda request: httpx.Response(200, content=data))
    made = HttpEngine(url, DIALECTS[kind], **settings)
    made.policy_version = 0
    return made


async def generate(made: Any, deadline_s: float = 5.0) -> Any:
    """Request what the valid answers contain."""
    from rollouts.engine.base import Sampling

    sampling = Sampling(seed=1, max_new_tokens=3, stop=(2,))
    try:
        return await made.generate(PROMPT, sampling, session="s", deadline_s=deadline_s)
    finally:
        await made.close()


def refused(asked: Callable[[], Any], *, within_s: float | None = None) -> str:
    """The text of the machine fault raised by ``asked``; an answer, or another error, is a failure."""
    from rollouts.engine.client import ServerFault

    began = time.monotonic()
    try:
        asked()
    except (ServerFault, TimeoutError) as error:
        said = str(error)
    else:
        raise AssertionError("the answer was believed")
    assert within_s is None or time.monotonic() - began < within_s, f"{time.monotonic() - began:.1f} s: {said}"
    assert "127.0.0.1" in said and len(said) < 2000 and said.isprintable(), said
    return said


def quick() -> Any:
    """Short pauses, and a short time until a server counts as gone."""
    return patch.multiple("rollouts.engine.servers.http", _PAUSE_S=0.001, _LONGEST_PAUSE_S=0.01, _GONE_S=0.2)
