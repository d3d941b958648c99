"""Which servers make the policy pool: they may be added, lost, and come back while a run goes on.

``rollouts.http.urls_file`` has an address a line and is read again before each version; without it the servers are
``rollouts.http.urls``. From the first restart on, and at each version, a server that does not answer is left out if
another one does; it is taken in again when it answers. A server that is taken in gets the weights before any request.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from parl.errors import UserError
from parl.shown.terminal import echo
from rollouts.config import HttpConfig
from rollouts.engine.address import check_address, check_key, shown
from rollouts.engine.client import Client

_HEALTH_S = 5.0


class Roster:
    """The servers of the policy pool. ``used``: those in use, in order."""

    def __init__(self, http: HttpConfig) -> None:
        self._http = http
        self.used: tuple[str, ...] = ()
        self._settled = False

    def settle(self) -> None:
        """All have weights: from here on a server that does not answer is lost, not starting."""
        self._settled = True

    def look(self) -> tuple[str, ...]:
        """The servers that should be used now: with a restart command all that are listed, since it starts them."""
        listed = self.listed()
        if not self._settled or self._http.restart or (len(listed) == 1 and listed == self.used):
            return listed
        answers = asyncio.run(_healthy(listed, os.environ.get(self._http.api_key_env or "")))
        return tuple(url for url in listed if answers[url]) or listed

    def take(self, found: tuple[str, ...]) -> None:
        """Use ``found`` from here on; reports who comes and who goes."""
        if self.used and found != self.used:
            listed = self.listed()
            for url in (url for url in found if url not in self.used):
                echo(f"{shown(url)} serves the policy from here on")
            for url in (url for url in self.used if url not in found):
                echo(f"{shown(url)} {'does not answer' if url in listed else 'is not listed'}: left out", err=True)
        self.used = found

    def listed(self) -> tuple[str, ...]:
        """The addresses of the file, or of the configuration. UserError names the file and the line."""
        if self._http.urls_file is None:
            return self._http.urls
        file = Path(self._http.urls_file)
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"rollouts.http.urls_file = {file} cannot be read: {error}") from None
        urls = [line.strip().rstrip("/") for line in lines if line.strip() and not line.lstrip().startswith("#")]
        for url in urls:
            try:
                check_address(url, "name the environment variable with its key in rollouts.http.api_key_env")
                check_key(url, self._http.api_key_env and "key", self._http.api_key_env or "")
            except ValueError as error:
                raise UserError(f"rollouts.http.urls_file = {file}: {error}") from None
            if url in self._http.frozen_urls:
                raise UserError(f"rollouts.http.urls_file = {file}: {shown(url)} serves the frozen sub-agents")
        if not urls:
            raise UserError(f"rollouts.http.urls_file = {file} names no server")
        return tuple(dict.fromkeys(urls))


async def _healthy(urls: tuple[str, ...], key: str | None) -> dict[str, bool]:
    async def asks(url: str) -> bool:
        client = Client(url, key=key or None)
        try:
            return await client.status("/health", _HEALTH_S) == 200
        finally:
            await client.close()

    return dict(zip(urls, await asyncio.gather(*map(asks, urls)), strict=True))
