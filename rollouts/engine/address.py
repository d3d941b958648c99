"""Server addresses: validation, display, and where a key may be sent. No torch.

Addresses are stored in config.yaml, logs and trackers, so they must hold no secret: credentials and queries
are refused and never shown. A key goes over TLS, or to this machine.
"""

from __future__ import annotations

import ipaddress
import re

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::(?P<port>\d{1,5}))?"
    r"(?P<path>/[a-z0-9._~%/:+-]*)?",
    re.IGNORECASE,
)
_LONGEST = 2000  # characters
_LIKE_ONE = re.compile(r"[a-z][a-z0-9+.-]+:/{1,3}[^\s\"'<>]*", re.IGNORECASE)
_USER = re.compile(r"(?<=/)[^/?#\s\"']*@")
_QUERY = re.compile(r"[?#].*")
_KEY = re.compile(r"[\x21-\x7e]+")


def shown(text: str) -> str:
    """``text`` without credentials, queries and fragments in its addresses."""
    return _LIKE_ONE.sub(lambda found: _QUERY.sub("?***", _USER.sub("***@", found[0])), str(text))


def check_address(url: str, cure: str) -> None:
    """ValueError unless ``url`` is a plain http address; ``cure``: how to give its key instead."""
    if _USER.search(url):
        raise ValueError(f"{shown(url)} has credentials in it, which would be stored and logged: {cure}")
    if re.search(r"[?#]", url):
        raise ValueError(f"{shown(url)} has a query or a fragment, which an address of a server has not: {cure}")
    found = _ADDRESS.fullmatch(url)
    if found is None or len(url) > _LONGEST or not 0 < int(found["port"] or 1) < 65536 or not _host_is_one(url):
        raise ValueError(f"{shown(url[:_LONGEST])!r} is not an address like http://127.0.0.1:8000 or https://host/path")


def check_place(place: str, *, store: bool = False) -> None:
    """ValueError unless ``place`` is HOST or HOST:PORT to listen at, or an address of fsspec without secrets.

    ``store``: only the latter.
    Every address of a machine at once (0.0.0.0, ::) is no place: the servers must be told one.
    """
    if "://" in place:
        if _USER.search(place) or re.search(r"[?#\s]", place):
            raise ValueError(f"{shown(place)} has credentials, a query or spaces in it: give keys in the environment")
        return
    if store:
        raise ValueError(f"{shown(place)!r} is no address of fsspec, like s3://bucket/folder or file:///mnt/folder")
    found = _ADDRESS.fullmatch(f"http://{place}")
    if found is None or found["path"] or not _host_is_one(f"http://{place}"):
        raise ValueError(f"{shown(place)!r} is neither HOST, HOST:PORT nor an address like s3://bucket/folder")
    if found["host"] in ("0.0.0.0", "[::]"):
        raise ValueError(f"{place}: name the one address of this machine that the servers reach, not all of them")


def check_key(url: str, key: str | None, name: str) -> None:
    """ValueError if ``key``, from the environment variable ``name``, may not be sent to ``url``."""
    if not key:
        return
    if not _KEY.fullmatch(key):
        raise ValueError(f"the key in {name} has spaces or characters that no header can hold: set it anew")
    if url.lower().startswith("http://") and not is_loopback(url):
        raise ValueError(
            f"{shown(url)}: the key in {name} would travel unencrypted over http: use https, a tunnel to 127.0.0.1, or"
            f" unset {name} where the server needs none"
        )


def is_loopback(url: str) -> bool:
    """Whether ``url`` names this machine by ``localhost`` or a full loopback address."""
    host = host_of(url)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    """The host in ``url``, in lower case without brackets; empty if it is not an address."""
    found = _ADDRESS.fullmatch(url)
    return found["host"].lower().strip("[]") if found else ""


def _host_is_one(url: str) -> bool:
    """A host in brackets must be an IPv6 address, one of digits and dots a whole IPv4 address."""
    host = host_of(url)
    if ":" in host or re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
    return ".." not in host
