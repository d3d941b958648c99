"""Ordinary pages through the guard. Hostile URLs and servers: ``tests/attacks/addresses.py``."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from attacks.lying import http, says, socket_server

from envs.tools.domains import Domains, ascii_host
from envs.tools.guard import Guard, check_url


def opened(url: str, **given: object) -> Guard:
    """A guard that may reach the server of a test."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    return Guard(loopback_ports=(httpx.URL(url).port or 80,), resolve=resolve, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("", bytes),
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
    ],
)
async def test_a_page_is_read_in_every_encoding(encoding: str, pack):
    body = "<p>caf\u00e9 ".encode("latin-1") * 5000
    head = ("Content-Type: text/html; charset=latin-1", f"Content-Encoding: {encoding}" if encoding else "X: y")
    with socket_server(says(http(pack(body), "200 OK", *head))) as url:
        guard = opened(url)
        page = await guard.fetch(f"{url}/page?q=1#part", deadline_s=5)
        await guard.close()
    assert page.data == body and not page.cut
    assert (page.status, page.kind, page.charset, page.url) == (200, "text/html", "latin-1", f"{url}/page?q=1")


async def test_redirects_are_followed_and_the_host_header_is_the_name():
    heard: list[bytes] = []

    def answer(connection: socket.socket, request: bytes, number: int) -> None:
        heard.append(request)
        connection.sendall(http(b"", "302 F", "Location: ../b") if number == 0 else http(b"there", "404 No"))

    with socket_server(answer) as url:
        guard, port = opened(url), httpx.URL(url).port
        page = await guard.fetch(f"http://site.example:{port}/a/x", deadline_s=5)
        await guard.close()
    assert (page.status, page.data, page.url) == (404, b"there", f"http://site.example:{port}/b")
    assert f"Host: site.example:{port}".encode() in heard[0] and b"GET /b " in heard[1]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of site.example, with its key."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate")
    file = tmp_path / "site.pem"
    line = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=site.example"
    names = ["-addext", "subjectAltName=DNS:site.example", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run([*line.split(), *names], check=True, capture_output=True, timeout=30)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


@pytest.fixture
def secure(certificate: Path) -> Iterator[tuple[int, list[str | None]]]:
    """A server over TLS, and the names that it was asked for."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda connection, name, _: names.append(name)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                with context.wrap_socket(connection, server_side=True) as stream:
                    stream.recv(4096)
                    stream.sendall(http(b"secure", "200 OK", "Connection: close"))
            except ssl.SSLError:
                continue
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1], names
    listener.close()


async def test_tls_names_and_certificates_are_those_of_the_url(secure: tuple[int, list[str | None]], certificate: Path):
    port, names = secure
    url = f"https://site.example:{port}/"
    guard = opened(url, certificates=ssl.create_default_context(cafile=f"{certificate}.crt"))
    assert (await guard.fetch(url, deadline_s=5)).data == b"secure" and names == ["site.example"]
    with pytest.raises(httpx.ConnectError, match="certificate"):
        await guard.fetch(f"https://other.example:{port}/", deadline_s=5)
    await guard.close()


def test_ordinary_urls_pass():
    for url in (
        "http://example.com",
        "https://en.wikipedia.org/wiki/Rome?action=raw",
        "https://b\u00fccher.example.com:8443/%20x",
        "http://93.184.216.34/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/",
        "http://a-b.c_d.example.com./x@y",
    ):
        assert check_url(url).startswith(url[:5])
    assert check_url("HTTP://EXAMPLE.com:80/a#b") == "http://example.com/a"


def test_domains_hold_what_is_below_them_in_any_spelling():
    domains = Domains(("huggingface.co", "*.B\u00dcCHER.example", "answers.example/"))
    for host in (
        "huggingface.co",
        "HuggingFace.co.",
        "a.b.huggingface.co",
        "xn--bcher-kva.example",
        "x.b\u00fccher.example",
    ):
        assert domains.holds(host), host
    for host in ("nothuggingface.co", "huggingface.co.evil.com", "co", "", ".."):
        assert not domains.holds(host), host
    assert domains.holds_url("https://cdn.answers.example:8443/x") and not domains.holds_url("https://example.com/")
    assert domains.holds_url("http://a:port/") and not Domains().holds_url("http://a:port/")
    with pytest.raises(ValueError, match="no host name"):
        ascii_host("a..b")
