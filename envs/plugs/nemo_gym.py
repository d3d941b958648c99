"""Resources servers of NeMo-Gym over HTTP: a POST for each tool, ``/seed_session`` before and ``/verify`` after.

A session is a cookie. Rows are the server's own: ``responses_create_params`` with input and tools in the form of
OpenAI's Responses, and whatever else the server reads. The package itself is not needed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field, field_validator

from envs.base import Environment, ErrorKind, Gold, Score, Task, ToolCall, ToolResult, ToolSpec, task_key
from envs.plugs.session import PlugSection, PlugSession, Refused, ServerLost, offered, places, reason

_GONE = (502, 503, 504)
_SEED_S = 60.0


class NemoGymConfig(PlugSection):
    """A resources server of NeMo-Gym."""

    url: str = Field(description="its address, such as http://127.0.0.1:8080")
    rows: Path = Field(description="its rows, a JSONL file with responses_create_params")
    low: float = Field(default=0.0, description="lowest reward")
    high: float = Field(default=1.0, description="highest; an episode that reaches it is a success")

    @field_validator("url")
    @classmethod
    def _check(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url.rstrip("/")


class NemoGymEnvironment(Environment):
    """Rows and tools of one server. Of every ten rows, the last two are those of val and test."""

    Config = NemoGymConfig
    config: NemoGymConfig
    neutral = frozenset({"url"})
    repeatable = False

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows; ValueError names the line of one that is none."""
        rows = []
        lines = self.config.rows.read_text(encoding="utf-8").split("\n")  # splitlines() also ends lines in JSON texts
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    _asked(row)
                    _specs(row)
                except (ValueError, TypeError, KeyError) as error:
                    where = f"{self.config.rows}: line {number}"
                    raise ValueError(f"{where}: no row of NeMo-Gym ({type(error).__name__}: {error})") from error
                rows.append(row)
        if not rows:
            raise ValueError(f"{self.config.rows}: no row")
        return rows

    def tasks(self, split: str) -> Iterator[Task]:
        """The rows of ``split``; all of them where there are fewer than ten."""
        for index in places(len(self.rows), split):
            asked = _asked(self.rows[index])
            key = task_key(asked, self.rows[index])
            yield Task(
                key=key, family="nemo_gym", split=split, prompt=asked, gold=Gold(kind="none"), plan={"row": index}
            )

    def tools(self) -> tuple[ToolSpec, ...]:
        """Those of the first row; each session has its own row's."""
        return _specs(self.rows[0])

    def digest(self) -> dict[str, str]:
        """The hash of the rows."""
        return {"rows": hashlib.sha256(self.config.rows.read_bytes()).hexdigest()}

    def notes(self) -> Iterator[str]:
        """ValueError for bad rows, or names of tools that do not exist."""
        offered(self.config, self.tools())
        yield from ()

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> NemoGymSession:
        """A seeded session; ServerLost without the server."""
        row = self.rows[task.plan["row"]]
        session = NemoGymSession(self.config, row)
        try:
            await session.begin()
        except BaseException:
            await session.close()
            raise
        return session


class NemoGymSession(PlugSession):
    """One episode: a client with the session's cookie."""

    def __init__(self, config: NemoGymConfig, row: dict[str, Any]) -> None:
        super().__init__(offered(config, _specs(row)), config.result_chars)
        self._config, self._row = config, row
        self._client = httpx.AsyncClient(base_url=config.url, timeout=None, trust_env=False)  # calls have deadlines

    async def begin(self) -> None:
        """``/seed_session``."""
        await self._post("/seed_session", self._row, _SEED_S)

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """See :class:`PlugSession`."""
        return ToolResult(text=await self._post(f"/{call.name}", call.arguments, deadline_s))

    async def score(self, episode: Any) -> Score:
        """The reward of ``/verify`` over the orchestrator's conversation."""
        body = self._row | {"response": _response(self._row, episode)}
        verdict = json.loads(await self._post("/verify", body, None))
        return Score(value=float(verdict["reward"]), low=self._config.low, high=self._config.high)

    async def close(self) -> None:
        """Close the client."""
        self.closed = True
        await self._client.aclose()

    async def _post(self, path: str, body: Any, timeout: float | None) -> str:
        try:
            reply = await self._client.post(path, json=body, timeout=timeout)
        except httpx.TimeoutException as error:
            raise TimeoutError(str(error)) from error
        except httpx.TransportError as error:
            raise ServerLost(f"{self._config.url}: {type(error).__name__}: {error}") from error
        if reply.status_code in _GONE:
            raise ServerLost(f"{self._config.url}{path}: status {reply.status_code}")
        text = reply.content.decode("utf-8", "replace")  # JSON; reply.text would take any codec that a server names
        if reply.is_error:
            kind = ErrorKind.BAD_ARGS if reply.status_code == 422 else ErrorKind.SERVER
            raise Refused(kind, f"{reply.status_code}: {reason(text)}")
        return text


def _asked(row: dict[str, Any]) -> str:
    """The text of the input's messages."""
    given = row["responses_create_params"]["input"]
    if isinstance(given, str):
        return given
    texts = []
    for message in given:
        content = message["content"]
        texts.append(content if isinstance(content, str) else "\n".join(part["text"] for part in content))
    return "\n\n".join(texts)


def _specs(row: dict[str, Any]) -> tuple[ToolSpec, ...]:
    found = []
    for tool in row["responses_create_params"].get("tools") or ():
        if tool.get("type", "function") == "function":
            schema = tool.get("parameters") or {"type": "object", "properties": {}}
            found.append(ToolSpec(name=tool["name"], description=tool.get("description") or "", parameters=schema))
    return tuple(found)


def _response(row: dict[str, Any], episode: Any) -> dict[str, Any]:
    """The orchestrator's conversation as a response of OpenAI's."""
    output: list[dict[str, Any]] = []
    for turn in episode.traces[0].turns:
        if turn.content:
            text = {"type": "output_text", "text": turn.content, "annotations": []}
            about = {"role": "assistant", "status": "completed", "type": "message"}
            output.append(about | {"id": f"msg_{len(output)}", "content": [text]})
        for call in turn.calls:
            about = {"type": "function_call", "status": "completed", "call_id": call.id, "id": f"fc_{len(output)}"}
            output.append(about | {"name": call.name, "arguments": json.dumps(call.arguments)})
        for call, result in zip(turn.calls, turn.results, strict=False):
            output.append({"type": "function_call_output", "call_id": call.id, "output": result.text})
    params = row["responses_create_params"]
    whole = {"id": "resp_0", "object": "response", "created_at": 0.0, "model": "policy", "output": output}
    return whole | {"parallel_tool_calls": True, "tool_choice": "auto", "tools": params.get("tools") or []}
