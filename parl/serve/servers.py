"""Checks before a run with inference servers: their key and the proxy. No torch."""

from __future__ import annotations

import os

from parl.errors import UserError
from rollouts.config import HttpConfig
from rollouts.engine.address import check_key, is_loopback
from rollouts.engine.client import make_client


def check_servers(http: HttpConfig) -> None:
    """UserError if the servers' key is missing or may not be sent, or the proxy is unusable."""
    name = http.api_key_env
    if name and not os.environ.get(name):
        raise UserError(f"rollouts.http.api_key_env = {name}: no such environment variable is set")
    for url in (*http.urls, *http.frozen_urls):
        try:
            check_key(url, os.environ.get(name or ""), name or "")
            make_client(url, trust_env=not is_loopback(url))
        except ValueError as error:
            raise UserError(f"rollouts.http.urls: {error}") from None
