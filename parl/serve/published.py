"""Versions of the weights for servers without a shared disk: offered over HTTP, or written to an fsspec address.

A version is a set of content-addressed shards and the deltas to the version before
(:mod:`rollouts.engine.servers.blobs`). Over HTTP a blob is given only to a request that carries its signature, made
with a key that is drawn here and leaves this process never; servers get the signatures in the manifest. Nothing but
published blobs can be named.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import threading
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from parl.errors import UserError
from rollouts.engine.servers.blobs import Blob, Manifest, Shard, difference, sha256, signature
from rollouts.gateway.socket import server_config

_LOOPBACK = "127.0.0.1"
_NAME = re.compile(r"[0-9a-f]{64}")
_START_S = 30.0
_KEPT = 2  # versions whose blobs are offered: a slow server may still fetch the one before


class Published:
    """Offers versions at ``place`` (``rollouts.http.publish``); ``folder``: for deltas and blobs, on this machine.

    UserError if the address cannot be listened at.
    """

    def __init__(self, place: str | None, folder: Path) -> None:
        self._folder = folder
        self._key = secrets.token_bytes(32)
        self._files: dict[str, dict[str, Path]] = {}  # by blob and pool: pools delete their folders at different times
        self._versions: dict[str, list[set[str]]] = {}  # of each pool, oldest first: the names of its blobs
        self._before: dict[str, dict[str, Path]] = {}  # of each pool's last version: file name -> file
        self._server: uvicorn.Server | None = None
        self.where = place if place and "://" in place else self._listen(place)

    @property
    def remote(self) -> bool:
        """Whether versions are written to an fsspec address."""
        return self._server is None

    def publish(self, pool: str, version: int, folder: Path, *, word: int) -> Manifest:
        """Offer the safetensors files of ``folder``, which stay there unchanged until the pool's second next version.

        ``word``: bytes of a number. OSError if they cannot be written to the address.
        """
        files = {file.name: file for file in sorted(folder.glob("*.safetensors"))}
        before, self._before[pool] = self._before.get(pool, {}), files
        shards, names = [], set[str]()
        for name, file in files.items():
            data = file.read_bytes()
            whole = self._offer(pool, data, file)
            names.add(whole.sha256)
            older = before.get(name)
            old = older.read_bytes() if older is not None and older.exists() else b""
            if sha256(old) == whole.sha256 or not old or (patch := difference(old, data, word=word)) is None:
                shards.append(Shard(whole=whole))
                continue
            delta = self._write(pool, patch)
            names.add(delta.sha256)
            shards.append(Shard(whole=whole, delta=delta, base=sha256(old)))
        self._versions.setdefault(pool, []).append(names)
        self._forget(pool)
        return Manifest(version=version, where=self.where, shards=tuple(shards))

    def close(self) -> None:
        """Stop offering."""
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(_START_S)

    def _write(self, pool: str, data: bytes) -> Blob:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{sha256(data)}.delta"
        file.write_bytes(data)
        return self._offer(pool, data, file)

    def _offer(self, pool: str, data: bytes, file: Path) -> Blob:
        name = sha256(data)
        known = name in self._files
        self._files.setdefault(name, {})[pool] = file
        if not self.remote:
            return Blob(sha256=name, size=len(data), sign=signature(self._key, name))
        if not known:
            import fsspec

            with fsspec.open(f"{self.where.rstrip('/')}/{name}", "wb", auto_mkdir=True) as out:
                out.write(data)  # type: ignore[union-attr]
        return Blob(sha256=name, size=len(data))

    def _forget(self, pool: str) -> None:
        """Withdraw the blobs that only old versions of ``pool`` need; deltas and remote copies are deleted."""
        versions = self._versions[pool]
        gone = set[str]().union(*versions[:-_KEPT])
        del versions[:-_KEPT]
        for name in gone.difference(*versions):
            file = self._files[name].pop(pool)
            if self._files[name]:  # another pool's too
                continue
            del self._files[name]
            if file.suffix == ".delta":
                file.unlink(missing_ok=True)
            if self.remote:
                import fsspec

                fsspec.core.url_to_fs(f"{self.where.rstrip('/')}/{name}")[0].rm(f"{self.where.rstrip('/')}/{name}")

    # ---------------------------------------------------------------- over HTTP

    def _listen(self, place: str | None) -> str:
        host, _, port = (place or _LOOPBACK).rpartition(":") if ":" in (place or "") else (place or _LOOPBACK, "", "0")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            listening = socket.create_server(found[4][:2], family=found[0], backlog=128)
        except OSError as error:
            raise UserError(
                f"rollouts.http.publish={place}: cannot listen there ({error}): give an address of this machine that"
                " the servers reach, and a free port"
            ) from None
        app = Starlette(routes=[Route("/{name}", self._answer, methods=["GET"])])
        app.router.redirect_slashes = False
        self._server = uvicorn.Server(server_config(app, stall_s=120.0))
        run = self._server.serve(sockets=[listening])
        self._thread = threading.Thread(target=lambda: asyncio.run(run), name="parl weights", daemon=True)
        self._thread.start()
        give_up = time.monotonic() + _START_S
        while not self._server.started:
            if time.monotonic() > give_up or not self._thread.is_alive():
                raise UserError(f"rollouts.http.publish={place}: the server of the weights did not start")
            time.sleep(0.01)
        shown = f"[{host.strip('[]')}]" if ":" in host else host
        return f"http://{shown}:{listening.getsockname()[1]}"

    async def _answer(self, request: Request) -> Response:
        """The same refusal for a wrong signature and for a blob that is not there."""
        name, given = request.path_params["name"], request.headers.get("x-parl-sign", "")
        signed = bool(_NAME.fullmatch(name)) and secrets.compare_digest(
            given.encode("latin-1", "replace"), signature(self._key, name).encode()
        )
        file = next((file for file in list(self._files.get(name, {}).values()) if file.is_file()), None)
        if not signed or file is None:
            return PlainTextResponse("no such blob, or not signed", status_code=403)
        return FileResponse(file, media_type="application/octet-stream")
