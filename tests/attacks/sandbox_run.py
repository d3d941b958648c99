"""Tries the escapes and abuses of ``sandbox_abuses`` at one level, as the calling user. Standard library only.

python sandbox_run.py LEVEL [NAME ...]      # prints a JSON row each: name, held, said
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from attacks.sandbox_abuses import ABUSES, PRELUDE, Abuse, known_open
from envs.sandbox import Limits, Sandbox

MARK = f"31.{os.getpid()}"  # seconds that daemons sleep: their command line tells whose they are
LIMITS = Limits(memory=1 << 28, disk=1 << 24, files=128, inodes=5000, processes=24, output=10_000)


class Outer:
    """What the host has: secrets, a process, servers. ``hurt`` tells what an abuse did to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.chmod(folder, 0o755)
        self.common, self.private = folder / "common", folder / "private"
        (folder / "open").mkdir()
        os.chmod(folder / "open", 0o777)
        self.reset()
        self.servers = [self._serve(socket.AF_INET, ("127.0.0.1", 0)), self._serve(socket.AF_INET6, ("::1", 0))]
        self.servers += [self._serve(socket.AF_UNIX, str(folder / "socket"))]
        self.servers += [self._serve(socket.AF_UNIX, f"\0{folder.name}")]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        threading.Thread(target=self._echo, daemon=True).start()
        os.chmod(folder / "socket", 0o777)
        self.victim = self._start_victim()

    def reset(self) -> None:
        """The files as they were."""
        for name, mode in (("secret", 0o644), ("common", 0o666), ("private", 0o600)):
            path = self.folder / name
            path.write_text(name)
            os.chmod(path, mode)
            os.utime(path, (1e9, 1e9))
        for name in ("gone", "moved"):
            (self.folder / "open" / name).write_text(name)

    def facts(self) -> str:
        """What an abuse is told of it."""
        return json.dumps(
            {
                "port": self.servers[0].getsockname()[1],
                "port6": self.servers[1].getsockname()[1],
                "udp": self.udp.getsockname()[1],
                "unix": str(self.folder / "socket"),
                "abstract": self.folder.name,
                "victim": self.victim.pid,
                "name": self.folder.name,
                "mark": MARK,
                "folder": str(self.folder / "open"),
                **{name: str(self.folder / name) for name in ("secret", "common", "private")},
            }
        )

    def hurt(self) -> str:
        """What is no longer as it was, and mended; empty if all is."""
        found = []
        with open(f"/proc/{self.victim.pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        if self.victim.poll() is not None or state in "TZ":
            found.append(f"the victim is {state}")
            self.victim.kill()
            self.victim.wait()
            self.victim = self._start_victim()
        status = self.private.stat()
        if (status.st_mode & 0o777, status.st_mtime) != (0o600, 1e9) or self.common.read_text() != "common":
            found.append("files changed")
        if left := subprocess.run(["pgrep", "-f", f"sleep {MARK}"], capture_output=True, text=True).stdout.split():
            found.append(f"processes are left: {left}")
            for pid in left:
                os.kill(int(pid), signal.SIGKILL)
        self.reset()
        return ", ".join(found)

    def close(self) -> None:
        """End servers and victim."""
        self.victim.kill()
        self.victim.wait()
        for server in (*self.servers, self.udp):
            server.close()

    def _start_victim(self) -> subprocess.Popen[bytes]:
        mute = subprocess.DEVNULL  # one that is left over must not hold our own streams open
        env = {"PARL_SECRET": "hunter2", **os.environ}
        return subprocess.Popen(["sleep", "999"], env=env, start_new_session=True, stdout=mute, stderr=mute)

    def _serve(self, family: int, address: object) -> socket.socket:
        server = socket.socket(family)
        server.bind(address)  # type: ignore[arg-type]
        server.listen()

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    connection.sendall(b"hello")
                    connection.close()
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        return server

    def _echo(self) -> None:
        while True:
            try:
                _, sender = self.udp.recvfrom(9)
                self.udp.sendto(b"hello", sender)
            except OSError:
                return


async def attempt(abuse: Abuse, sandbox: Sandbox, outer: Outer) -> str:
    """What went wrong; empty if it was held."""
    began = time.monotonic()
    ran = await sandbox.run(
        PRELUDE + abuse.code,
        deadline_s=abuse.deadline_s,
        files={"outer.json": outer.facts()},
        collect=abuse.collect,
    )
    took, hurt = time.monotonic() - began, outer.hurt()
    if "ESCAPED" in ran.stdout or hurt:
        return f"{hurt} {ran}"
    if (not ran.stdout.startswith("began") and ran.why != "killed") or "NameError" in ran.stderr:
        return f"the abuse itself is wrong: {ran.stderr}"
    if took > abuse.deadline_s + 4:
        return f"{took:.1f} s"
    return "" if abuse.want(ran) else f"not as wanted: {ran}"


async def attempts(level: str, python: str, names: Sequence[str]) -> list[dict[str, str | bool]]:
    """All that the level is said to hold, or those named."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="outer-", dir="/tmp") as folder:
        outer = Outer(Path(folder))
        try:
            async with Sandbox(level=level, python=python, limits=LIMITS) as sandbox:
                for abuse in ABUSES:
                    if (not names and known_open(abuse, level, os.getuid())) or (names and abuse.name not in names):
                        continue
                    said = await attempt(abuse, sandbox, outer)
                    rows.append({"name": abuse.name, "held": not said, "said": said})
        finally:
            outer.close()
    return rows


if __name__ == "__main__":
    for row in asyncio.run(attempts(sys.argv[1], sys.executable, sys.argv[2:])):
        print(json.dumps(row))
