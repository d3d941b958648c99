"""Inference servers that send invalid, slow or oversized answers, and misdirected keys."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack
from attacks.lying import (
    GONE,
    POSITIONS,
    TOKENS,
    Send,
    chat,
    engine,
    generate,
    http,
    npy,
    quick,
    refused,
    routes,
    says,
    sglang,
    socket_server,
    spoilt,
)
from attacks.lying import vllm as honest_vllm

DEADLINE_S = 0.6
GRACE_S = 2.5  # margin for a busy machine
HUGE = 10**400
C = "choices.0."
L = "choices.0.logprobs.content."

VLLM_LIES: list[tuple[str, str, Any]] = [
    ("no choices", "choices", GONE),
    ("choices empty", "choices", []),
    ("choices a text", "choices", "7"),
    ("a choice that is null", "choices", [None]),
    ("two choices for one asked", "choices", honest_vllm()["choices"] * 2),
    ("no log-probs", C + "logprobs", None),
    ("a token that is a text", L + "0.token_id", "7"),
    ("a token that is a fraction", L + "0.token_id", 7.5),
    ("a token that is true", L + "0.token_id", True),
    ("a token below zero", L + "0.token_id", -1),
    ("a token outside the vocabulary", L + "0.token_id", 100),
    ("a token of 400 digits", L + "0.token_id", HUGE),
    ("a token without log-prob", L + "0.logprob", GONE),
    ("a log-prob that is null", L + "0.logprob", None),
    ("a log-prob that is a text", L + "0.logprob", "-0.5"),
    ("a log-prob above 0", L + "0.logprob", 0.5),
    ("a log-prob for minus infinity", L + "0.logprob", -9999.0),
    ("a log-prob of -1e300", L + "0.logprob", -1e300),
    ("more tokens than asked", C + "logprobs.content", [{"token_id": 7, "logprob": -1.0}] * 4),
    ("no tokens", C + "logprobs.content", []),
    ("other tokens than those with log-probs", C + "token_ids", [7, 9, 2]),
    ("more tokens than log-probs", C + "token_ids", [*TOKENS, 9]),
    ("stopped without a stop token", L + "2.token_id", 9),
    ("the stop token in the middle", L + "0.token_id", 2),
    ("went on after the stop token", C + "finish_reason", "length"),
    ("aborted", C + "finish_reason", "abort"),
    ("no finish reason", C + "finish_reason", None),
    ("a finish reason that is a number", C + "finish_reason", 1),
    ("weights of another version", C + "weight_versions", [{"version": "9", "start": 0, "end": 3}]),
    ("a version that is a number", C + "weight_versions", [{"version": 0, "start": 0, "end": 3}]),
    ("no version", C + "weight_versions", None),
    ("a version for some tokens only", C + "weight_versions", [{"version": "0", "start": 0, "end": 1}]),
    ("another prompt echoed", "prompt_token_ids", [40, 41, 42, 44]),
    ("a shortened prompt", "usage.prompt_tokens", 3),
    ("usage below zero", "usage.completion_tokens", -3),
    ("usage that is a text", "usage", "many"),
    ("a model name of a megabyte", "model", "m" * 10**6),
    ("an error with status 200", "error", {"message": "out of \x1b[2J memory", "code": 500}),
    ("routes that are no base64", C + "routed_experts", "%%%"),
    ("routes that are no array", C + "routed_experts", "AAAA"),
    ("no routes", C + "routed_experts", None),
]


def _route_lies() -> list[tuple[str, str, Any]]:
    import numpy as np

    good = routes()
    lies: list[tuple[str, Any]] = [
        ("an expert that is not there", np.where(good == 3, 4, good)),
        ("an expert below zero: the learner's own choice", good.astype(np.int8) * 0 - 1),
        ("an expert twice", good * 0),
        ("routes that are fractions", good.astype(np.float32)),
        ("routes of one position less", good[1:]),
        ("routes of another shape with as many numbers", good.reshape(POSITIONS * 2, 2, 1)),
        ("routes of objects, a pickle", _pickled()),
        ("an array that claims 10^18 numbers", _claimed((10**9, 10**9))),
    ]
    return [(name, C + "routed_experts", value if isinstance(value, str) else npy(value)) for name, value in lies]


def _pickled() -> str:
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return base64.b64encode(file.getvalue()).decode()


def _claimed(shape: tuple[int, ...]) -> str:
    import numpy as np

    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return base64.b64encode(file.getvalue() + b"\0" * 24).decode()


M = "meta_info."
SGLANG_LIES: list[tuple[str, str, Any]] = [
    ("no meta_info", "meta_info", GONE),
    ("meta_info a list", "meta_info", []),
    ("no log-probs", M + "output_token_logprobs", None),
    ("a pair in place of a triple", M + "output_token_logprobs.0", [-0.5, 7]),
    ("a log-prob that is null", M + "output_token_logprobs.0", [None, 7, None]),
    ("a log-prob that is a text", M + "output_token_logprobs.0", ["-0.5", 7, None]),
    ("a token that is a fraction", M + "output_token_logprobs.0", [-0.5, 7.5, None]),
    ("a token outside the vocabulary", M + "output_token_logprobs.0", [-0.5, 100, None]),
    ("other tokens than those with log-probs", "output_ids", [7, 8, 3]),
    ("a shortened prompt", M + "prompt_tokens", 2),
    ("weights of another version", M + "weight_version", "8"),
    ("aborted", M + "finish_reason", {"type": "abort", "message": "queue"}),
    ("a finish reason without type", M + "finish_reason", {}),
    ("routes of three bytes", M + "routed_experts", "AAAA"),
    ("routes that name no expert", M + "routed_experts", "/////w=="),
]

G = "choices.0.message."
CHAT_LIES: list[tuple[str, str, Any]] = [
    ("no choices", "choices", GONE),
    ("choices null", "choices", None),
    ("choices empty", "choices", []),
    ("no message", "choices.0.message", GONE),
    ("a message that is a text", "choices.0.message", "hello"),
    ("content that is a number", G + "content", 7),
    ("content that is a table", G + "content", {"text": "7"}),
    ("content whose parts are texts", G + "content", ["7"]),
    ("more text than the tokens hold", G + "content", "a" * 10**6),
    ("tool calls that are a table", G + "tool_calls", {}),
    ("a call without function", G + "tool_calls.0.function", GONE),
    ("a function without name", G + "tool_calls.0.function.name", GONE),
    ("a function whose name is a number", G + "tool_calls.0.function.name", 7),
    ("a name of a megabyte", G + "tool_calls.0.function.name", "a" * 10**6),
    ("an id that is a table", G + "tool_calls.0.id", {}),
    ("more calls than tokens", G + "tool_calls", chat()["choices"][0]["message"]["tool_calls"] * 9000),
    ("an unknown end", "choices.0.finish_reason", "\x1b]0;owned\x07"),
    ("an end for the machine's sake", "choices.0.finish_reason", "abort"),
    ("usage below zero", "usage.prompt_tokens", -1),
    ("usage that is true", "usage.prompt_tokens", True),
    ("usage that is a fraction", "usage.completion_tokens", 1.5),
    ("a model that is a number", "model", 4),
    ("an error with status 200", "error", {"message": "quota"}),
]

RAW: list[tuple[str, bytes]] = [
    ("HTML", b"<!doctype html><h1>Sign in</h1>"),
    ("nothing", b""),
    ("a list", b"[1]"),
    ("null", b"null"),
    ("cut JSON", json.dumps(honest_vllm()).encode()[:-9]),
    ("JSON with more after it", json.dumps(honest_vllm()).encode() + b"{}"),
    ("NaN", b'{"choices": NaN}'),
    ("Infinity", json.dumps(honest_vllm()).encode().replace(b"-0.5", b"-Infinity")),
    ("a number that is infinite", json.dumps(honest_vllm()).encode().replace(b"-0.5", b"-1e999")),
    ("a key twice", b'{"choices": [], ' + json.dumps(honest_vllm()).encode()[1:]),
    ("bytes that are no UTF-8", b'{"choices": "\xff\xfe"}'),
    ("100,000 brackets", b'{"a":' + b"[" * 100_000),
    ("a number of a million digits", b'{"choices": ' + b"9" * 10**6 + b"}"),
]


def _token_lie(kind: str, path: str, value: Any, folder: Path) -> None:
    honest = honest_vllm() if kind == "vllm" else sglang()
    done = asyncio.run(generate(engine(honest, kind)))
    assert done.tokens == TOKENS and done.routes.shape == (POSITIONS, 2, 2)
    refused(lambda: asyncio.run(generate(engine(spoilt(honest, path, value), kind))))


def _raw_lie(body: bytes, folder: Path) -> None:
    refused(lambda: asyncio.run(generate(engine(body))))


def _score_lie(positions: Any, folder: Path) -> None:
    asked = engine({"prompt_logprobs": positions})
    refused(lambda: asyncio.run(asked.score([1, 2, 3], deadline_s=5)))


class _Words:
    """The part of a tokenizer that the chat engine needs before it encodes an answer."""

    def __init__(self, control: Sequence[str]) -> None:
        self.special = dict.fromkeys(control, 0)

    def pieces(self, prompt: list[int]) -> list[tuple[str, bool]]:
        return []

    def encode_segments(self, pieces: Any) -> list[int]:
        return [1]


def _chat_engine(transport: Any, url: str = "http://127.0.0.1:1") -> Any:
    from envs.base import Role
    from model.chat.kimi import KimiChat
    from rollouts.engine.chat.client import ChatServer, Usage
    from rollouts.engine.chat.engine import ChatEngine, ChatModel
    from rollouts.episode import Trace

    server = ChatServer(url, transport=transport, pause_s=0.0)
    trace, tokenizer = Trace(agent_id="0", role=Role.ORCHESTRATOR), _Words(KimiChat.control)
    return ChatEngine(trace, KimiChat(tokenizer), ChatModel(server=server, name="m"), [], Usage())  # type: ignore[arg-type]


def _chat_lie(tree: Any, folder: Path) -> None:
    import httpx

    from rollouts.engine.base import Sampling

    answers = [chat(), tree]
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=json.dumps(answers.pop(0))))

    async def ask() -> None:
        spoken = _chat_engine(transport)
        for _ in range(2):
            await spoken.generate([1], Sampling(seed=1), session="s", deadline_s=5)

    refused(lambda: asyncio.run(ask()))
    assert not answers


def _forever(socket_: socket.socket, head: bytes, part: bytes, pause_s: float = 0.0) -> None:
    socket_.sendall(head)
    give_up = time.monotonic() + DEADLINE_S + 4
    while time.monotonic() < give_up:
        socket_.sendall(part)
        time.sleep(pause_s)


def _closes(data: bytes) -> Send:
    def send(connection: socket.socket, request: bytes, number: int) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)

    return send


def _pours(head: bytes, part: bytes, pause_s: float = 0.0) -> Send:
    return lambda connection, request, number: _forever(connection, head, part, pause_s)


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
_GOOD = json.dumps(honest_vllm()).encode()


def _wire_lies() -> list[tuple[str, Send]]:
    zipped = gzip.compress(b"[" * (200 * 2**20), 6)
    twice = gzip.compress(gzip.compress(b" " * 2**20))
    packed = gzip.compress(_GOOD)
    gz = "Content-Encoding: gzip"
    return [
        ("a body without end", _pours(_LONG, b" " * 65536)),
        ("a chunked body without end", _pours(_CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n")),
        ("a byte every 50 ms", _pours(_LONG, b" ", 0.05)),
        ("headers a byte at a time", _pours(b"HTTP/1.1 200 OK\r\nX-A: ", b"a", 0.05)),
        ("headers without end", _pours(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 8192 + b"\r\n")),
        ("one header of 1 MB", says(http(b"{}", "200 OK", "X-A: " + "a" * 2**20))),
        ("informational answers without end", _pours(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.001)),
        ("silence after the headers", says(_LONG)),
        ("silence", lambda connection, request, number: time.sleep(DEADLINE_S + 2)),
        ("hung up at once", _closes(b"")),
        ("hung up in the headers", _closes(b"HTTP/1.1 200 OK\r\nConte")),
        ("hung up in the body", _closes(http(_GOOD, length=len(_GOOD) + 9))),
        ("hung up in a chunk", _closes(_CHUNKED + b"ff\r\n{")),
        ("chunks with sizes that are none", _closes(_CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n")),
        ("no HTTP", _closes(b"SSH-2.0-OpenSSH_9.2\r\n")),
        ("a status that is none", _closes(b"HTTP/1.1 9999 OK\r\nContent-Length: 0\r\n\r\n")),
        ("switching protocols", _closes(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")),
        ("a body shorter than it says", _closes(http(b"{}", length=200))),
        ("a gzip bomb", says(http(zipped, "200 OK", gz))),
        ("gzip in gzip", says(http(twice, "200 OK", "Content-Encoding: gzip, gzip"))),
        ("gzip that is none", says(http(_GOOD, "200 OK", gz))),
        ("gzip cut off", says(http(packed[:-6], "200 OK", gz))),
        ("gzip with more after it", says(http(packed + packed, "200 OK", gz))),
        ("an encoding that was not offered", says(http(_GOOD, "200 OK", "Content-Encoding: br"))),
        ("an error page without end", _pours(_LONG.replace(b"200 OK", b"404 Not Found"), b"<p>" * 2**12)),
        ("204 for a completion", says(b"HTTP/1.1 204 No Content\r\n\r\n")),
        ("205 with nothing", says(http(b"", "205 Reset Content"))),
    ]


def _wire_lie(send: Send, folder: Path) -> None:
    """Expected: a machine fault within the deadline, with little memory."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with quick(), socket_server(send) as url:
        refused(lambda: asyncio.run(generate(engine(url), DEADLINE_S)), within_s=DEADLINE_S + GRACE_S)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150 * 2**10, f"{grown / 2**10:.0f} MiB more"


def _status(code: int, tries: int, folder: Path) -> None:
    """Transient statuses are retried up to five times; redirects are not followed."""
    seen: list[bytes] = []

    def send(connection: socket.socket, request: bytes, number: int) -> None:
        seen.append(request)
        connection.sendall(http(b"x\x1b[31m", f"{code} Said", "Location: http://127.0.0.1:9/other"))

    with quick(), socket_server(send) as url:
        said = refused(lambda: asyncio.run(generate(engine(url, api_key="k" * 20), 5)))
        assert f"answered {code}" in said and len(seen) == tries, (said, len(seen))


def _retry_after(value: str | float, least_s: float, folder: Path) -> None:
    """A server's Retry-After is respected within the deadline. A number: a date so many seconds ahead."""
    times: list[float] = []
    began = time.time()
    asked = value if isinstance(value, str) else _date(value)
    due = began + least_s if isinstance(value, str) else float(int(began + value))

    def send(connection: socket.socket, request: bytes, number: int) -> None:
        times.append(time.time())
        busy = http(b"later", "503 Busy", f"Retry-After: {asked}")
        connection.sendall(busy if number == 0 else http(_GOOD))

    with quick(), socket_server(send) as url:
        if least_s > DEADLINE_S:
            said = refused(lambda: asyncio.run(generate(engine(url), DEADLINE_S)), within_s=DEADLINE_S + GRACE_S)
            assert "answered 503" in said and len(times) == 1 and time.time() - began > DEADLINE_S * 0.9
        else:
            assert asyncio.run(generate(engine(url), 9)).tokens == TOKENS
            assert times[0] + least_s <= times[1] + 0.01 and due <= times[1] + 0.01
            assert times[1] < max(due, times[0]) + GRACE_S


def _date(seconds: float) -> str:
    from email.utils import formatdate

    return formatdate(time.time() + seconds, usegmt=True)


def cases() -> list[Attack]:
    """All of them."""
    runs: list[tuple[str, Callable[[Path], None]]] = []
    runs += [(f"vLLM: {name}", partial(_token_lie, "vllm", path, value)) for name, path, value in VLLM_LIES]
    runs += [(f"vLLM: {name}", partial(_token_lie, "vllm", path, value)) for name, path, value in _route_lies()]
    runs += [(f"SGLang: {name}", partial(_token_lie, "sglang", path, value)) for name, path, value in SGLANG_LIES]
    runs += [(f"chat: {name}", partial(_chat_lie, spoilt(chat(), path, value))) for name, path, value in CHAT_LIES]
    runs += [(f"a body that is {name}", partial(_raw_lie, body)) for name, body in RAW]
    scores: list[tuple[str, Any]] = [
        ("missing", None),
        ("too few", [None, {"2": {"logprob": -1.0}}]),
        ("of another token", [None, {"9": {"logprob": -1}}, None]),
        ("above 0", [None, {"2": {"logprob": 1.0}}, {"3": {"logprob": -1.0}}]),
        ("texts", [None, {"2": {"logprob": "x"}}, None]),
    ]
    runs += [(f"the probe's log-probs: {name}", partial(_score_lie, value)) for name, value in scores]
    runs += [(f"wire: {name}", partial(_wire_lie, send)) for name, send in _wire_lies()]
    for code in (300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 410, 413, 418, 422, 451, 501, 505, 511):
        runs.append((f"status {code}", partial(_status, code, 1)))
    for code in (408, 425, 429, 500, 502, 503, 504):
        runs.append((f"status {code}", partial(_status, code, 5)))
    waits: list[tuple[str, str | float, float]] = [
        *[("0", "0", 0.0), ("0.2", "0.2", 0.2), ("a date", 2.0, 0.0), ("a date gone by", -99.0, 0.0)],
        *[("a word", "soon", 0.0), ("below 0", "-5", 0.0), ("nan", "nan", 0.0), ("empty", "", 0.0)],
        *[("500 digits", "9" * 500, 9.0), ("an hour", "3600", 9.0), ("a date in an hour", 3600.0, 9.0)],
    ]
    runs += [(f"Retry-After: {name}", partial(_retry_after, *wait)) for name, *wait in waits]
    return [Attack(area="servers", name=name, run=run) for name, run in runs]
