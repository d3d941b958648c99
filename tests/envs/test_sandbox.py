"""The sandbox as its callers use it. Escapes and abuses: ``tests/attacks/sandbox_abuses.py``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.sandbox import Limits, Sandbox, SandboxError, levels
from envs.sandbox.inside import beneath, syscalls
from envs.sandbox.levels import CONTAINER, LEVELS, Place, command, reason_against

GIVEN = [level for level in LEVELS if not reason_against(level)]
pytestmark = pytest.mark.skipif(not GIVEN, reason="this machine gives no level of the sandbox")


@pytest.mark.parametrize("level", GIVEN)
async def test_code_runs_with_files_input_and_exit_code(level: str):
    async with Sandbox(level=level) as sandbox:
        ran = await sandbox.run(
            "import sys\nprint(open('a/b').read(), input())\nopen('a/b', 'a').write('x')\n"
            "open('made', 'w').write('m')\nsys.exit(3)",
            deadline_s=30,
            files={"a/b": "given"},
            stdin="typed\n",
            collect=("made", "absent"),
        )
        assert (ran.stdout, ran.stderr, ran.code, ran.why) == ("given typed\n", "", 3, "")
        assert ran.files == {"made": b"m"} and not ran.timed_out
        ran = await sandbox.run(["sh", "-c", "echo $A; exit 4"], deadline_s=30, env={"A": "b"})
        assert (ran.stdout, ran.code) == ("b\n", 4)
        assert not ran.absent


@pytest.mark.parametrize("level", GIVEN)
async def test_a_program_that_does_not_start_is_told_from_one_that_ends_with_the_same_code(level: str):
    async with Sandbox(level=level) as sandbox:
        gone = await sandbox.run(["no-such-program"], deadline_s=30)
        assert (gone.code, gone.absent, gone.stderr) == (127, True, "no-such-program: No such file or directory\n")
        plain = await sandbox.run(["./plain"], deadline_s=30, files={"plain": "echo"})
        assert (plain.code, plain.absent) == (126, True)
        assert (await sandbox.run(["echo", "a\0b"], deadline_s=30)).absent
        for code in (126, 127):
            ran = await sandbox.run(["sh", "-c", f"echo sh: gone >&2; exit {code}"], deadline_s=30)
            assert (ran.code, ran.absent) == (code, False)


@pytest.mark.parametrize("level", GIVEN)
async def test_a_session_keeps_its_state_until_it_is_stopped(level: str):
    async with Sandbox(level=level) as sandbox:
        session = sandbox.session()
        assert (await session.run("import math\nx = 41", deadline_s=30)).stdout == ""
        assert (await session.run("x + 1", deadline_s=30)).stdout == "42\n"
        failed = await session.run("def f():\n    return math.nothing\nf()", deadline_s=30)
        assert failed.code == 1 and failed.stderr.startswith("Traceback") and "return math.nothing" in failed.stderr
        assert "envs/sandbox" not in failed.stderr
        stopped = await session.run("print('so far', flush=True)\nwhile True: pass", deadline_s=0.3)
        assert stopped.timed_out and stopped.stdout == "so far\n"
        assert "NameError" in (await session.run("x", deadline_s=30)).stderr
        started = "import subprocess\nsubprocess.Popen(['sleep', '60']).pid"
        pid = (await session.run(started, deadline_s=30)).stdout.strip()
        ended = (
            f"import subprocess, time\ntime.sleep(.1)\nsubprocess._active[:] = []\nimport os\nos.waitpid({pid}, 0)[1]"
        )
        assert (await session.run(ended, deadline_s=5)).stdout == "9\n"
        left = await session.run("raise SystemExit(7)", deadline_s=30)
        assert left.code == 7
        await session.close()
        await session.close()


async def test_code_that_is_no_python_is_said_and_threads_and_exit_functions_run():
    async with Sandbox() as sandbox:
        assert (await sandbox.run("import decimal, sqlite3, uuid", deadline_s=30)).stderr == ""
        assert "SyntaxError" in (await sandbox.run("def", deadline_s=30)).stderr
        code = (
            "import atexit, threading, time, dataclasses, pickle\n"
            "atexit.register(print, 'bye')\n"
            "threading.Thread(target=lambda: (time.sleep(.05), print('thread'))).start()\n"
            "@dataclasses.dataclass\nclass A:\n    x: int\nprint(pickle.loads(pickle.dumps(A(3))))"
        )
        assert (await sandbox.run(code, deadline_s=30)).stdout == "A(x=3)\nthread\nbye\n"


async def test_a_folder_of_the_host_is_worked_in(tmp_path: Path):
    os.chmod(tmp_path, 0o777)
    for parent in list(tmp_path.parents)[:2]:  # pytest's own, closed to other users
        os.chmod(parent, 0o755)
    async with Sandbox() as sandbox:
        ran = await sandbox.run("open('made', 'w').write('m')", deadline_s=30, folder=str(tmp_path))
        assert ran.code == 0, ran
        assert (tmp_path / "made").read_text() == "m"


async def test_many_run_at_once_and_nothing_is_left():
    async with Sandbox(warm=2) as sandbox:
        runs = await asyncio.gather(*(sandbox.run(f"print({n})", deadline_s=20) for n in range(12)))
        assert [ran.stdout for ran in runs] == [f"{n}\n" for n in range(12)]
    alive = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True).stdout
    assert "envs.sandbox" not in alive


async def test_the_deadline_holds_for_a_cancelled_and_for_a_lost_worker():
    async with Sandbox() as sandbox:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await sandbox.run("import time; time.sleep(60)", deadline_s=60)
        worker = await sandbox._take(None, 5)
        worker.process.kill()
        began = time.monotonic()
        ran = await sandbox._ask(worker, "print(1)", 60, None)
        assert ran.why == "killed" and time.monotonic() - began < 30


async def test_names_that_lead_out_are_refused():
    async with Sandbox() as sandbox:
        for name in ("../x", "/etc/x", "a/../../x", "", ".", "a\0b"):
            with pytest.raises(SandboxError, match="relative path"):
                await sandbox.run("", deadline_s=30, files={name: "x"})


def test_a_level_that_cannot_be_given_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(levels, "reason_against", lambda level, *_: f"no {level} today" if level != "rlimits" else "")
    assert Sandbox().level == "rlimits"
    with pytest.raises(SandboxError, match=r"level bubblewrap: no bubblewrap today; .*level landlock: no landlock"):
        Sandbox(required="landlock")
    with pytest.raises(SandboxError, match="no container today"):
        Sandbox(required="container", image="python:3.12-slim")
    with pytest.raises(ValueError, match="there is no level steel: bubblewrap, landlock"):
        Sandbox(required="steel")


def test_reasons_name_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    reason_against.cache_clear()
    monkeypatch.setattr(levels, "bwrap", lambda: None)
    monkeypatch.setattr(levels, "engine", lambda: None)
    monkeypatch.setattr(levels.confine, "landlock_version", lambda: 0)
    assert "pip install 'parl-swarm[sandbox]'" in reason_against("bubblewrap")
    assert "no Landlock" in reason_against("landlock")
    assert "neither docker nor podman" in reason_against(CONTAINER, image="python:3.12-slim")
    monkeypatch.setattr(syscalls.platform, "machine", lambda: "riscv64")
    reason_against.cache_clear()
    monkeypatch.setattr(levels, "bwrap", lambda: "/usr/bin/bwrap")
    assert "processor" in reason_against("bubblewrap")
    reason_against.cache_clear()


def test_the_command_line_of_a_container(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(levels, "engine", lambda: "podman")
    line = " ".join(command(CONTAINER, Place(image="python:3.12-slim", folder="/srv/f", memory=1 << 28, processes=9)))
    for part in (
        "podman run --rm --interactive --init --network none --read-only --cap-drop ALL",
        "--security-opt no-new-privileges --user 65534:65534",
        f"--memory {1 << 28} --memory-swap {1 << 28} --pids-limit 9",
        "--volume /srv/f:/tmp/work",
        "python:3.12-slim python3 -I -S -B -c import sys",
    ):
        assert part in line
    assert "envs/sandbox/inside:/sandbox/envs/sandbox/inside:ro" in line


def test_the_filter_is_valid_for_both_processors(monkeypatch: pytest.MonkeyPatch):
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(syscalls.platform, "machine", lambda machine=machine: machine)
        for network in (True, False):
            code = syscalls.program(
                network=network, processes=network, shared_user=True, signals=False, truncation=False
            )
            count = len(code) // 8
            assert len(code) % 8 == 0 and 100 < count < 4096
            for at in range(count):  # no jump leaves the program
                assert at + 1 + max(code[8 * at + 2], code[8 * at + 3]) <= count - (code[8 * at] != 0x06)


def test_files_below_a_folder_are_opened_without_links(tmp_path: Path):
    root = str(tmp_path)
    beneath.write(root, "a/b/c", b"deep")
    assert beneath.read(root, "a/./b//c", 99) == b"deep" and beneath.read(root, "a/b/c", 2) == b"de"
    os.symlink("/etc", tmp_path / "etc")
    os.symlink("/etc/passwd", tmp_path / "passwd")
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "a" / "b" / "c", tmp_path / "hard")
    for name in ("passwd", "etc/passwd", "fifo", "hard", "a"):
        with pytest.raises((beneath.Outside, OSError)):
            beneath.read(root, name, 9)
        with pytest.raises((beneath.Outside, OSError)):
            beneath.write(root, name, b"x")


def test_the_sandbox_imports_the_standard_library_alone():
    """So that it runs under any interpreter, also one without parl's dependencies."""
    code = "import sys, envs.sandbox.sandbox; print([n for n in sys.modules if n in ('pydantic', 'httpx', 'numpy')])"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30)
    assert run.stdout == "[]\n", run.stderr


def test_limits_are_those_that_the_worker_takes():
    assert Limits(memory=5).rules(1.2)["memory"] == 5 and Limits().rules(1.2)["cpu_s"] == 3
