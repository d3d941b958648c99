"""Keys sent to the wrong host, addresses that contain secrets, and proxies."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from attacks.base import Attack, NotHere
from attacks.lying import TOKENS, engine, generate, http, quick, refused, says, socket_server, vllm

_GOOD = http(vllm())


def _redirect_keeps_the_key(folder: Path) -> None:
    """The target of a redirect is never contacted."""
    heard: list[bytes] = []

    def listen(connection: socket.socket, request: bytes, number: int) -> None:
        heard.append(request)
        connection.sendall(_GOOD)

    with quick(), socket_server(listen) as other:
        for code in ("301 M", "302 F", "303 S", "307 T", "308 P"):
            away = http(b"", code, f"Location: {other.replace('127.0.0.1', 'localhost')}/inference/v1/generate")
            with socket_server(says(away)) as url:
                said = refused(lambda url=url: asyncio.run(generate(engine(url, api_key="k" * 20), 5)))
                assert "is not followed" in said
    assert not heard


def _key_in_errors(folder: Path) -> None:
    """A server that echoes the key cannot put it into an error message."""
    key = "sk-" + "a1B2" * 8
    with quick(), socket_server(says(http(f"bad key {key}".encode(), "400 No"))) as url:
        assert key not in refused(lambda: asyncio.run(generate(engine(url, api_key=key), 5)))


def _cli(*arguments: str, env: dict[str, str] | None = None) -> Any:
    from typer.testing import CliRunner

    from parl.cli.main import app

    clean = {name: None for name in os.environ if name.lower().endswith("_proxy") or name.startswith("OPENAI_")}
    done = CliRunner().invoke(app, list(arguments), env={**clean, **(env or {})})
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    assert "Traceback" not in done.output
    return done


_QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
ADDRESSES = [
    "http://user:hunter2@127.0.0.1:8000",
    "http://hunter2@127.0.0.1:8000",
    "https://u:hunter2@example.invalid/v1",
    "HTTP://u:hunter2@127.0.0.1:8000",
    "http://u%3Ahunter2@127.0.0.1:8000",
    "http://127.0.0.1:8000/v1?key=hunter2",
    "http://127.0.0.1:8000/v1#hunter2",
    "http://u:hunter2@[::1",
    "ftp://u:hunter2@127.0.0.1/",
    "http://127.0.0.1:99999/v1",
    "http:///v1",
    "http://127.0.0.1\\@evil.invalid",
    "http://127.0.0.1:8000 .evil.invalid",
    "http://127.1:8000",
    "http://b\u00fccher.invalid",
]


def _address(url: str, folder: Path) -> None:
    """Refused wherever an address is given, before anything is written; the secret is not printed."""
    from parl.config.load import load_config
    from parl.errors import UserError
    from parl.evaluate.chat_model import find_model, is_url

    def said(asked: Callable[[], Any]) -> None:
        try:
            asked()
        except UserError as error:
            assert "hunter2" not in str(error), error
            return
        raise AssertionError("the address was taken")

    for option in (
        f"rollouts.http.urls=['{url}']",
        f"rollouts.http.frozen_urls=['{url}']",
        f"rollouts.http.urls='{url}'",
    ):
        said(lambda option=option: load_config(_QUICKSTART, ["rollouts.engine=vllm", option]))
    assert is_url(url)
    said(lambda: find_model(url, "m"))


def _address_by_command(folder: Path) -> None:
    """With exit 2, and the name of the key's variable."""
    url, tail = ADDRESSES[0], [f"root={folder}", "rollouts.engine=vllm"]
    done = _cli("train", _QUICKSTART, *tail, f"rollouts.http.urls=['{url}']", "--dry-run")
    assert "hunter2" not in done.output and "rollouts.http.urls: " in done.output, done.output
    done = _cli("eval", _QUICKSTART, f"root={folder}", "--model", url)
    assert "hunter2" not in done.output and "OPENAI_API_KEY" in done.output, done.output
    assert not list(folder.iterdir())


PLAIN = [
    *("http://10.0.0.7:8000", "http://192.0.2.1/v1", "http://gpu-box:8000", "http://0.0.0.0:8000", "http://2130706433"),
    *("http://127.0.0.1.evil.invalid:8000", "http://localhost.evil.invalid", "http://[2001:db8::1]:8000"),
]


def _plain_http(url: str, folder: Path) -> None:
    """No key is sent over plain http beyond this machine; the error names the fix, and no request is made."""
    from rollouts.engine.address import check_address, check_key

    try:
        check_address(url, "")
        check_key(url, "hunter2", "MY_KEY")
    except ValueError as error:
        assert "use https" in str(error) or "is not an address" in str(error)
        return
    raise AssertionError("the key would be sent")


def _plain_http_by_command(folder: Path) -> None:
    """With exit 2, also in a dry run."""
    url = "http://192.0.2.1:8000"
    tail = [
        f"root={folder}",
        "rollouts.engine=vllm",
        f"rollouts.http.urls=['{url}']",
        "rollouts.http.api_key_env=MY_KEY",
    ]
    env = {"MY_KEY": "hunter2", "OPENAI_API_KEY": "hunter2"}
    for arguments in (
        ["train", _QUICKSTART, *tail, "--dry-run"],
        ["eval", _QUICKSTART, f"root={folder}", "--model", url],
    ):
        done = _cli(*arguments, env=env)
        assert "use https" in done.output and "_KEY" in done.output and "hunter2" not in done.output, done.output
    assert not list(folder.iterdir())


def _key_of_another_host(folder: Path) -> None:
    """The key belongs to the host of OPENAI_BASE_URL: another server does not get it."""
    heard: list[bytes] = []

    def send(connection: socket.socket, request: bytes, number: int) -> None:
        heard.append(request)
        connection.sendall(http({"data": []}))

    from parl.evaluate.chat_model import _models

    with socket_server(send) as url:
        for base, sent in (("https://api.example.invalid/v1", False), (url, True), ("", True)):
            heard.clear()
            with patch.dict(os.environ, {"OPENAI_API_KEY": "hunter2", "OPENAI_BASE_URL": base}):
                asyncio.run(_models(f"{url}/v1"))
            assert (b"hunter2" in heard[0]) == sent, base


def _past_the_proxy(folder: Path) -> None:
    """Servers on this machine are reached without the environment's proxy."""
    for proxy in ("http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x"):
        names = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), proxy)
        with socket_server(says(_GOOD)) as url, patch.dict(os.environ, names):
            assert asyncio.run(generate(engine(url))).tokens == TOKENS


def _through_the_proxy(folder: Path) -> None:
    """Other servers are reached through the environment's proxy."""
    heard: list[bytes] = []

    def send(connection: socket.socket, request: bytes, number: int) -> None:
        heard.append(request)
        connection.sendall(_GOOD)

    with (
        socket_server(send) as proxy,
        patch.dict(os.environ, {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": ""}),
    ):
        assert asyncio.run(generate(engine("http://gpu-box.invalid:8000"))).tokens == TOKENS
    assert heard[0].startswith(b"POST http://gpu-box.invalid:8000/inference/v1/generate")


def _bad_proxy(proxy: str, folder: Path) -> None:
    """An unusable proxy is reported in one line, with exit 2."""
    env = {"ALL_PROXY": proxy, "all_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
    try:
        import socksio  # type: ignore[import-not-found]  # noqa: F401 - httpx asks for it in the same way
    except ImportError:
        pass
    else:
        raise NotHere("socksio is installed")
    done = _cli("eval", _QUICKSTART, f"root={folder}", "--model", "http://gpu-box.invalid:8000", env=env)
    assert "proxy" in done.output and "hunter2" not in done.output and len(done.output.splitlines()) == 1, done.output


def cases() -> list[Attack]:
    """All cases."""
    runs: list[tuple[str, Callable[[Path], None]]] = []
    runs += [(f"address {url}", partial(_address, url)) for url in ADDRESSES]
    runs += [(f"a key over plain http to {url}", partial(_plain_http, url)) for url in PLAIN]
    proxies = ("socks5://127.0.0.1:9", "socks5h://u:hunter2@127.0.0.1:9", "nonsense://u:hunter2@x")
    runs += [(f"proxy {proxy}", partial(_bad_proxy, proxy)) for proxy in proxies]
    runs += [
        ("a redirect that would carry the key away", _redirect_keeps_the_key),
        ("an error that repeats the key", _key_in_errors),
        ("a key that is another host's", _key_of_another_host),
        ("loopback behind a proxy", _past_the_proxy),
        ("a server behind a proxy", _through_the_proxy),
        ("an address with a password, by command", _address_by_command),
        ("a key over plain http, by command", _plain_http_by_command),
    ]
    return [Attack(area="servers", name=name, run=run) for name, run in runs]
