"""Host names in one spelling, and lists of domains that are not shown, as those with a benchmark's answers."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import idna


def ascii_host(host: str) -> str:
    """``host`` in lower case and punycode, without a final dot; ValueError if it is none."""
    host = host.strip().lower().removesuffix(".")
    if not host or ".." in host:
        raise ValueError(f"{host!r} is no host name")
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(f"{host!r} is no host name: {error}") from None


class Domains:
    """A list of domains. A host is on it if it is one of them or below one."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(ascii_host(name.removeprefix("*.").strip("/")) for name in names)

    def holds(self, host: str) -> bool:
        """Whether ``host`` is on the list; a name that is none is not."""
        try:
            labels = ascii_host(host).split(".")
        except ValueError:
            return False
        return any(".".join(labels[at:]) in self.names for at in range(len(labels)))

    def holds_url(self, url: str) -> bool:
        """Whether ``url`` leads to a host on the list; so does one that cannot be read, if there is a list."""
        try:
            return self.holds(httpx.URL(url).host)
        except (httpx.InvalidURL, ValueError, UnicodeError):
            return bool(self.names)
