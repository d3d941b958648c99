"""The servers of the policy: listed in a file or in the configuration, lost, added, back again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from envs.world.site.server import SocketServer
from parl.collect.roster import Roster
from parl.errors import UserError
from rollouts.config import HttpConfig


class Up:
    """A server whose ``/health`` answers with ``status``."""

    def __init__(self) -> None:
        self.status = 200
        self.server = SocketServer(Starlette(routes=[Route("/health", self.health)]))
        self.url = self.server.url.rstrip("/")

    async def health(self, request: Request) -> Response:
        return Response(status_code=self.status)


@pytest.fixture
def two() -> Iterator[tuple[Up, Up]]:
    with ExitStack() as stack:
        made = Up(), Up()
        for one in made:
            stack.callback(one.server.close)
        yield made


def test_servers_that_are_starting_are_waited_for_and_lost_ones_are_left_out_until_they_answer(two, capsys):
    a, b = two
    b.status = 503
    roster = Roster(HttpConfig(urls=(a.url, b.url)))
    assert roster.look() == (a.url, b.url)  # at the start both, also one that loads its weights
    roster.take(roster.look())
    roster.settle()
    assert roster.look() == (a.url,)
    roster.take(roster.look())
    assert f"{b.url} does not answer: left out" in capsys.readouterr().err
    b.status = 200
    roster.take(roster.look())
    assert roster.used == (a.url, b.url) and f"{b.url} serves the policy from here on" in capsys.readouterr().out
    a.status = b.status = 503
    assert roster.look() == (a.url, b.url)  # without any, all: the run ends if none comes


def test_a_file_is_read_again(two, tmp_path: Path, capsys):
    a, b = two
    file = tmp_path / "servers"
    file.write_text(f"# one a line\n{a.url}/\n\n")
    roster = Roster(HttpConfig(urls_file=str(file)))
    roster.take(roster.look())
    roster.settle()
    assert roster.used == (a.url,) == roster.look()
    file.write_text(f"{a.url}\n{b.url}\n{b.url}\n")
    assert roster.look() == (a.url, b.url)
    roster.take(roster.look())
    file.write_text(f"{b.url}\n")
    roster.take(roster.look())
    assert roster.used == (b.url,) and f"{a.url} is not listed: left out" in capsys.readouterr().err


def test_with_a_restart_command_nobody_is_left_out(two):
    a, b = two
    b.status = 503
    roster = Roster(HttpConfig(urls=(a.url, b.url), restart="start {url}"))
    roster.take(roster.look())
    roster.settle()
    assert roster.look() == (a.url, b.url)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no server"),
        ("ftp://host", "is not an address"),
        ("http://key:secret@host:1", "rollouts.http.api_key_env"),
        ("http://127.0.0.1:9", "serves the frozen sub-agents"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path: Path, text: str, said: str):
    file = tmp_path / "servers"
    file.write_text(text)
    http = HttpConfig(urls_file=str(file), frozen_urls=("http://127.0.0.1:9",))
    with pytest.raises(UserError, match=said) as refused:
        Roster(http).look()
    assert str(file) in str(refused.value) and "secret" not in str(refused.value)
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Roster(http).look()
