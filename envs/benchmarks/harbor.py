"""Coding tasks as Harbor lays them out (Terminal-Bench 2 and others), in our sandbox instead of a container.

A task is a folder: ``task.toml``, ``instruction.md``, ``environment/Dockerfile``, ``tests/test.sh``. The agents get a
``bash`` tool in the task's working folder, then ``tests/test.sh`` writes ``/logs/verifier/reward.txt`` (a number) or
``reward.json``. There is no container: a Dockerfile may only copy files and set the folder and variables, and the
container's paths (its WORKDIR, /tests, /logs) become folders of the sandbox, also in the text of the test's files.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import shlex
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from envs.base import Role, Score, Task, ToolCall, ToolResult, ToolSpec
from envs.benchmarks.base import Benchmark, Limits, Row, read_prepared
from envs.plugs.session import PlugSession
from envs.sandbox.inside import beneath
from envs.sandbox.sandbox import Sandbox

_PASSED = ("FROM", "COPY", "WORKDIR", "ENV")
_BASH = ToolSpec(
    name="bash",
    description="Run a bash command in the task's folder. Files stay; variables and processes do not.",
    parameters={"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
)
_TEST_S = 60.0
_AROUND_S = 30.0  # around the tests: their files, the sandbox's start


@dataclass
class Image:
    """What a Dockerfile asks for: its folder, variables, and (source, destination) of copies."""

    workdir: str = "/"
    variables: dict[str, str] = field(default_factory=dict)
    copies: list[tuple[str, str]] = field(default_factory=list)


def read_dockerfile(text: str) -> Image:
    """The Dockerfile's image; ValueError for an instruction that needs a container, with its line."""
    image = Image()
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), 1):
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        if word.upper() not in _PASSED:
            raise ValueError(
                f"environment/Dockerfile:{number}: {line.strip()[:80]}: only {', '.join(_PASSED)} run without a"
                " container; give the task to Harbor, or bring what it installs with COPY"
            )
        parts = shlex.split(rest)
        if word.upper() == "WORKDIR":
            image.workdir = str(PurePosixPath(image.workdir) / parts[0])
        elif word.upper() == "ENV":
            pairs = parts if "=" in parts[0] else [f"{parts[0]}={' '.join(parts[1:])}"]
            image.variables |= dict(pair.split("=", 1) for pair in pairs)
        elif word.upper() == "COPY":
            if any(part.startswith("--") for part in parts) or len(parts) < 2:
                raise ValueError(f"environment/Dockerfile:{number}: {line.strip()[:80]}: COPY takes paths alone")
            *sources, target = parts
            place = str(PurePosixPath(image.workdir) / target) + (
                "/" if target.endswith("/") or len(sources) > 1 else ""
            )
            image.copies += [(source, place) for source in sources]
    return image


class Harbor(Benchmark):
    """A folder of Harbor tasks."""

    name = "harbor"
    about = "coding tasks in Harbor's layout (Terminal-Bench 2 ...), in the sandbox; scored by their tests"
    download = "a folder with a task, or with folders of tasks: `harbor datasets download NAME` writes one"
    limits = Limits(source="ours; the K2.5 report runs Terminal-Bench with another agent")
    blocked: ClassVar[tuple[str, ...]] = ()
    needs_tools = False

    def read(self, path: Path) -> Iterator[Row]:
        """One row a task, with its files; ValueError for a task that needs a container."""
        folders = [path] if (path / "task.toml").exists() else sorted(p.parent for p in path.glob("*/task.toml"))
        for folder in folders:
            files = {}
            for part in ("environment", "tests"):
                for file in sorted((folder / part).rglob("*")):
                    if file.is_file():
                        files[str(file.relative_to(folder))] = _content(file)
            for needed in ("environment/Dockerfile", "tests/test.sh"):
                if needed not in files:
                    raise ValueError(f"{folder}: there is no {needed}")
            try:
                read_dockerfile(files["environment/Dockerfile"])
                settings = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))
            except (ValueError, IndexError) as error:
                raise ValueError(f"{folder}: {error}") from None
            asked = (folder / "instruction.md").read_text(encoding="utf-8")
            seconds = settings.get("verifier", {}).get("timeout_sec", _TEST_S)
            yield {"id": folder.name, "instruction": asked, "files": files, "test_s": seconds}

    @property
    def scoring_s(self) -> float:
        """The longest time that a task gives its tests, and some."""
        return max(float(row["test_s"]) for row in read_prepared(self.folder)) + _AROUND_S

    def task(self, row: Row) -> Task:
        """The instruction, and where its paths are."""
        image = read_dockerfile(row["files"]["environment/Dockerfile"])
        where = f"\n\nThe tool bash starts in the task's folder ({image.workdir}); its other paths are beside it."
        return self.problem(row, row["instruction"].strip() + where)

    def session(self, row: Row) -> HarborSession:
        """A folder of its own in the sandbox."""
        return HarborSession(row)


class HarborSession(PlugSession):
    """One episode's folder. Every call runs in a fresh worker over it."""

    def __init__(self, row: Row) -> None:
        super().__init__(dict.fromkeys(Role, (_BASH,)), result_chars=20_000)
        self._row, self._image = row, read_dockerfile(row["files"]["environment/Dockerfile"])
        self._room = tempfile.TemporaryDirectory(prefix="harbor-", ignore_cleanup_errors=True)
        self._folder = Path(self._room.name)
        self._folder.chmod(0o777)
        self._sandbox = Sandbox(warm=0)
        self._lock = asyncio.Lock()
        for source, target in self._image.copies:
            self._copy(source, target)
        (self._folder / self._inside(self._image.workdir)).mkdir(parents=True, exist_ok=True)
        self._open_up()

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """Run one command: its output, and its code if that is not 0."""
        async with self._lock:
            ran = await self._bash(str(call.arguments.get("command", "")), deadline_s * 0.9)
        ended = f"\n[{ran.why or f'exit code {ran.code}'}]" if ran.why or ran.code else ""
        return ToolResult(text=(ran.stdout + ran.stderr).strip() + ended)

    async def grade(self, answer: str) -> Score:
        """Run the tests over the folder: their reward, clipped to [0, 1]; without one it is 0."""
        await asyncio.to_thread(self._place_tests)
        names = ("logs/verifier/reward.txt", "logs/verifier/reward.json")
        test = ["bash", f"{self._root}/tests/test.sh"]
        place = f"cd {shlex.quote(str(self._root) + self._image.workdir)} && exec {shlex.join(test)}"
        given: dict[str, Any] = {
            "deadline_s": float(self._row["test_s"]),
            "folder": str(self._folder),
            "collect": names,
        }
        ran = await self._sandbox.run(["bash", "-c", place], env=self._variables(), **given)
        reward = _reward(*(ran.files.get(name) for name in names))
        return Score(value=min(max(reward, 0.0), 1.0), parts={"reward": reward, "tests_ran": float(not ran.why)})

    async def close(self) -> None:
        """Remove the folder."""
        await super().close()
        await self._sandbox.close()
        await asyncio.to_thread(self._remove)

    @property
    def _root(self) -> str:
        return "/tmp/work" if self._sandbox.level in ("bubblewrap", "container") else str(self._folder)

    async def _bash(self, command: str, deadline_s: float) -> Any:
        line = f"cd {shlex.quote(self._root + self._image.workdir)} && {self._rewritten(command)}"
        given = {"deadline_s": deadline_s, "folder": str(self._folder), "env": self._variables()}
        return await self._sandbox.run(["bash", "-c", line], **given)

    def _variables(self) -> dict[str, str]:
        own = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": self._root}
        return own | {name: self._rewritten(value) for name, value in self._image.variables.items()}

    def _rewritten(self, text: Any) -> Any:
        """A text with the container's paths as they are in the sandbox."""
        if not isinstance(text, str):
            return text
        top = {"tests", "logs", PurePosixPath(self._image.workdir).parts[1] if self._image.workdir != "/" else "app"}
        top |= {PurePosixPath(target).parts[1] for _, target in self._image.copies if target != "/"}
        return re.sub(rf"(?<![\w./-])/(?={'|'.join(map(re.escape, sorted(top)))}\b)", f"{self._root}/", text)

    @staticmethod
    def _inside(path: str) -> str:
        """A path of the container, relative to the episode's folder; ValueError for one outside."""
        found = os.path.normpath(path.lstrip("/"))
        if found.split("/")[0] == "..":
            raise ValueError(f"environment/Dockerfile: {path} leads outside")
        return found

    def _copy(self, source: str, target: str) -> None:
        prefix = str(PurePosixPath("environment") / source).rstrip("/")
        inside = {name: content for name, content in self._row["files"].items() if name.startswith(prefix + "/")}
        if prefix in self._row["files"]:
            name = target + PurePosixPath(source).name if target.endswith("/") else target
            self._put(self._inside(name), self._row["files"][prefix])
        elif prefix == "environment" or inside:
            for name, content in (inside or self._row["files"]).items():
                if name.startswith(prefix) and name != "environment/Dockerfile":
                    self._put(self._inside(f"{target}/{PurePosixPath(name).relative_to(prefix)}"), content)
        else:
            raise ValueError(f"environment/Dockerfile: COPY {source}: there is no environment/{source}")

    def _put(self, path: str, content: Any) -> None:
        """Write a file of the folder, whatever an agent put in its way: a link is an error, not followed."""
        data = content.encode() if isinstance(content, str) else bytes.fromhex(content["hex"])
        beneath.write(str(self._folder), path, data)

    def _place_tests(self) -> None:
        """Remove what stands where the tests and their logs go, and write the task's own tests. OSError if it stays."""
        self._open_up()
        self._run("rm", "-rf", "--", *(str(self._folder / part) for part in ("tests", "logs")))
        for name, content in self._row["files"].items():
            if name.startswith("tests/"):
                self._put(name, self._rewritten(content))
        (self._folder / "logs" / "verifier").mkdir(parents=True)
        self._open_up()

    def _remove(self) -> None:
        """Remove the folder; what cannot be removed stays."""
        subprocess.run(["chmod", "-R", "--", "u+rwX", str(self._folder)], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", "--", str(self._folder)], capture_output=True, check=False)
        self._room.cleanup()

    def _open_up(self) -> None:
        """Let us and the sandbox's user write everywhere; links below the folder are left alone."""
        self._run("chmod", "-R", "--", "777", str(self._folder))

    @staticmethod
    def _run(*argv: str) -> None:
        """A program that copes with folders of any depth, which Python's own functions do not; OSError if it fails."""
        ran = subprocess.run(argv, capture_output=True, check=False)
        if ran.returncode:
            raise OSError(f"{' '.join(argv)}: {ran.stderr.decode('utf-8', 'replace').strip()[-200:]}")


def _content(file: Path) -> Any:
    data = file.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _reward(text: bytes | None, document: bytes | None) -> float:
    """What the tests wrote; 0 without a finite number."""
    try:
        rewards = json.loads(document or b"{}") if text is None else text
        reward = float(rewards.get("reward", 0.0)) if isinstance(rewards, dict) else float(rewards)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return 0.0
    return reward if math.isfinite(reward) else 0.0
