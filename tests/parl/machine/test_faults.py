"""Ray's failures lead to a restart or a named exit; hung is not busy; no step is trained in part."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray import exceptions as failures

from benchmarks.faults import Row, bad
from envs.base import Gold, Role, Task
from parl.cli.errors import machine_cause
from parl.collect.collector import Collector
from parl.collect.rerun import TRIES, Group, StepFailed, whole
from parl.errors import MachineError
from parl.machine.cluster import _start_named, worst
from parl.machine.faults import ActorLost, curable, is_machine, named, said
from parl.machine.watch import BLOCKED_S, SILENT_S, STOPPED_S, WATCH, Watched
from parl.run.checkpoints import Checkpoints, State
from parl.run.saver import Saver
from rollouts.beat import Beat
from rollouts.episode import MACHINE, Episode, EpisodeStatus, Trace
from rollouts.worker import EngineLost

ROOT = Path(__file__).parents[3]
TASK = Task(key="t", family="wide", split="train", prompt="?", gold=Gold(kind="exact", answers=("x",)))

REPLACED = {
    "ActorDiedError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "GetTimeoutError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayChannelError",
    "RayChannelTimeoutError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "TaskCancelledError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "WorkerCrashedError",
}
LOUD = {
    "ActorAlreadyExistsError",
    "ActorHandleNotFoundError",
    "AuthenticationError",
    "CrossLanguageError",
    "LocalRayletDiedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "RayCgraphCapacityExceeded",
    "RayDirectTransportError",
    "RayError",
    "RaySystemError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "UnserializableException",
    "UserCodeException",
}
CLASSES = {
    name: found
    for name, found in vars(failures).items()
    if inspect.isclass(found) and issubclass(found, failures.RayError) and name != "RayTaskError"
}


def raised(cls: type[failures.RayError]) -> failures.RayError:
    """An error of that class, without its constructor's arguments."""
    error = cls.__new__(cls)
    for name in ("actor_id", "error_msg", "message", "msg"):
        error.__dict__.setdefault(name, "what Ray says")
    cls_str = type(error).__str__
    try:
        cls_str(error)
    except Exception:
        error.__class__ = type(cls.__name__, (cls,), {"__str__": lambda self: "what Ray says"})
    return error


def wrapped(cause: Exception) -> failures.RayTaskError:
    """As an actor's method raises it."""
    return failures.RayTaskError("run", "Traceback", cause, proctitle="p", pid=1, ip="here").as_instanceof_cause()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_failure_of_ray_is_replaced_or_loud(name: str):
    assert name in REPLACED | LOUD, f"Ray has a new failure: {name}"
    for error in (raised(CLASSES[name]), wrapped(raised(CLASSES[name]))):
        assert is_machine(error)
        assert curable(error) == (name in REPLACED)
        ending = named(error)
        assert isinstance(ending, MachineError) and "is lost" in str(ending)
        assert "Traceback" not in str(ending)


def test_what_an_actors_code_raised_stays_what_it_is():
    for cause in (ValueError("odd"), KeyError("x"), RuntimeError("own")):
        error = wrapped(cause)
        assert not curable(error) and not is_machine(error)
        assert named(error) is error
    assert curable(wrapped(EngineLost("an engine is gone")))
    assert isinstance(named(failures.RayActorError("aa", "gone")), failures.RayActorError)
    assert issubclass(ActorLost, MachineError)


def test_a_lost_actor_is_named_with_its_process_and_cause():
    handle = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "f1"))
    WATCH._gone["f1"] = Watched(
        handle=handle, label="learner rank 3", asynchronous=False, answered=0.0, pid=77, host="n1"
    )
    text = said(failures.RayActorError("f1", "The actor died.\n\tclass_name: L\n\tpid: 77\nKilled for memory (OOM)."))
    assert "learner rank 3 (pid 77 on n1) is lost" in text and "Killed for memory (OOM)." in text
    assert "class_name" not in text
    WATCH._gone["f1"].why = "it hung: its process is stopped"
    assert "it hung" in said(failures.RayActorError("f1", "killed"))
    del WATCH._gone["f1"]


def test_a_lost_rank_explains_why_its_peers_failed():
    peer = wrapped(RuntimeError("[gloo] Connection closed by peer"))
    lost = failures.RayActorError("f9", "The actor died.\nkilled by signal 9")
    assert isinstance(worst([peer, lost]), ActorLost) and "signal 9" in str(worst([peer, lost]))
    assert worst([peer]) is peer


def watched() -> Watched:
    return Watched(handle=None, label="policy engine 0", asynchronous=True, answered=0.0, idle_since=0.0)


def run(one: Watched, seconds: float, beat) -> tuple[str, float]:
    """Beats every four seconds; returns the first problem, and when."""
    now = 0.0
    while now <= seconds:
        if wrong := one.beat(now, beat(now)):
            return wrong, now
        now += 4.0
    return "", now


@pytest.mark.parametrize(
    ("cpu", "loop", "step", "wrong"),
    [
        (lambda t: 0.9 * t, lambda t: 0.0, lambda t: t, ""),  # a long kernel
        (lambda t: 0.05 * t, lambda t: 0.0, lambda t: t, ""),  # the same on a crowded machine
        (lambda t: 0.9 * t, lambda t: t, lambda t: 0.0, ""),  # weights are loaded on the event loop
        (lambda t: 0.004 * t, lambda t: 0.0, lambda t: 0.0, ""),  # nothing to do
        (lambda t: 0.004 * t, lambda t: t, lambda t: 0.0, "event loop has been blocked"),
        (lambda t: 0.004 * t, lambda t: 0.0, lambda t: t, "its step has run"),
    ],
)
def test_a_busy_process_is_not_taken_for_a_hung_one(cpu, loop, step, wrong: str):
    said, when = run(watched(), 120.0, lambda t: Beat(1, "h", cpu(t), loop(t), step(t)))
    assert wrong in said and bool(said) == bool(wrong)
    assert not wrong or when <= 30.0


def test_a_loop_that_computes_for_ever_is_found_in_the_end():
    said, when = run(watched(), 600.0, lambda t: Beat(1, "h", t, t, 0.0))
    assert "blocked" in said and BLOCKED_S < when < BLOCKED_S + 10


@pytest.fixture
def process():
    """A process that counts as an actor, and computes on command."""
    code = "import sys\nwhile sys.stdin.readline() == 'spin\\n':\n    sum(range(3_000_000))\n"
    child = subprocess.Popen(["ray::Sleeper", "-c", code], executable=sys.executable, stdin=subprocess.PIPE, text=True)
    yield child
    child.send_signal(signal.SIGCONT)
    child.kill()
    child.wait()


def silence(one: Watched, until: float, begin: float = 0.0) -> tuple[str, float]:
    now = begin
    while now <= until:
        if wrong := one.silent(now):
            return wrong, now
        now += 4.0
    return "", now


def test_a_stopped_process_is_found_before_a_silent_one(process: subprocess.Popen):
    one = watched()
    one.pid, one.host = process.pid, os.uname().nodename
    psutil.Process(process.pid).suspend()
    time.sleep(0.1)
    said, when = silence(one, 60.0)
    assert "stopped (SIGSTOP)" in said and STOPPED_S <= when <= STOPPED_S + 8
    psutil.Process(process.pid).resume()
    one.stopped_since, one.answered, one.idle_since = None, 0.0, 0.0
    time.sleep(0.1)
    said, when = silence(one, 60.0)
    assert "neither answered nor computed" in said and SILENT_S < when <= 30


def test_a_silent_process_that_computes_is_left_alone(process: subprocess.Popen, monkeypatch: pytest.MonkeyPatch):
    one = watched()
    one.pid, one.host = process.pid, os.uname().nodename
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: (clock[0] * 0.1, 0.0))
    clock = [0.0]
    for now in range(0, 120, 4):
        clock[0] = float(now)
        assert not one.silent(float(now))


def episode(index: int, limit: str = "", error: str = "", status: EpisodeStatus = EpisodeStatus.FAILED) -> Episode:
    trace = Trace(agent_id="0", role=Role.ORCHESTRATOR)
    done = Episode(task=TASK, index=index, seed=1, traces=[trace], status=status)
    done.limit, done.error = limit, error
    return done


ANSWERED = EpisodeStatus.ANSWERED


def test_only_the_hurt_episodes_of_a_group_run_again_and_the_order_stays():
    group = Group(TASK, [3, 1, 2])
    group.take([episode(3, status=ANSWERED), episode(1, MACHINE, "cut"), episode(2, status=ANSWERED)])
    assert group.missing == [1] and group.pause_s > 0
    group.take([episode(1, status=ANSWERED)])
    assert not group.missing
    assert [done.index for done in group.episodes] == [3, 1, 2]
    assert whole(group.episodes) == group.episodes


@pytest.mark.parametrize(
    ("limit", "again"), [(MACHINE, TRIES[MACHINE]), ("", TRIES[""]), ("episode_s", 0), ("critical_steps", 0)]
)
def test_how_often_what_failed_is_run_again(limit: str, again: int, capsys: pytest.CaptureFixture[str]):
    group, runs = Group(TASK, [0, 1]), 0
    group.take([episode(0, status=ANSWERED), episode(1, limit, "why")])
    while group.missing:
        runs += 1
        group.take([episode(1, limit, "why")])
    assert runs == again
    if limit == MACHINE:
        with pytest.raises(MachineError, match=r"1 episode \(t#1\) failed again and again.*not|nothing of this step"):
            whole(group.episodes)
    else:
        assert whole(group.episodes) == group.episodes
        assert "count for nothing: why" in capsys.readouterr().err


def test_a_step_of_which_nothing_is_left_is_said_in_one_paragraph():
    with pytest.raises(StepFailed, match="all 2 episodes failed, the first of: cut") as found:
        whole([episode(0, MACHINE, "cut"), episode(1, MACHINE, "cut")])
    assert isinstance(found.value, RuntimeError | MachineError) and machine_cause(found.value) == str(found.value)


def test_a_cancelled_or_finished_episode_is_not_run_again():
    group = Group(TASK, [0, 1, 2])
    statuses = (EpisodeStatus.CANCELLED, EpisodeStatus.OVER_BUDGET, EpisodeStatus.MALFORMED)
    group.take([episode(index, status=status) for index, status in enumerate(statuses)])
    assert not group.missing


def collector(limit: int = 2) -> Collector:
    found = Collector.__new__(Collector)
    found._rollouts = SimpleNamespace(max_restarts=limit)  # type: ignore[assignment]
    found.restarts, found._workers, found._engines = 0, [], {}
    found._start = lambda: None  # type: ignore[method-assign]
    return found


def test_the_collector_starts_anew_until_its_restarts_are_used_up(capsys: pytest.CaptureFixture[str]):
    one = collector()

    def act() -> None:
        raise wrapped(EngineLost("the engine at http://x is gone"))

    with pytest.raises(MachineError, match=r"http://x is gone; rollouts.max_restarts=2 is used up, nothing of"):
        one.retrying(act)
    assert one.restarts == 2
    assert capsys.readouterr().err.count("started again") == 2


def test_the_collector_ends_at_once_for_what_new_actors_do_not_cure():
    for error, kind in ((wrapped(ValueError("odd")), ValueError), (raised(failures.OutOfDiskError), MachineError)):
        one = collector()

        def act(error: Exception = error) -> None:
            raise error

        with pytest.raises(kind):
            one.retrying(act)
        assert one.restarts == 0


def test_the_last_whole_step_is_kept_when_a_run_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    learner = SimpleNamespace(snapshot=lambda: 1, write_snapshot=lambda path: [])
    checkpoints = Checkpoints(tmp_path, keep=2)
    saver = Saver(checkpoints, learner)  # type: ignore[arg-type]
    saver.save_last(None)
    assert not checkpoints.all()
    saver.save_last(State(step=3))
    assert [path.name for path in checkpoints.all()] == ["step-000003"]
    learner.snapshot = raising(ActorLost("learner rank 0 is lost"))  # by what ends the run
    saver.save_last(State(step=4))
    assert "step 4 was not kept: learner rank 0 is lost" in capsys.readouterr().err
    assert [path.name for path in checkpoints.all()] == ["step-000003"]
    saver.close()


def raising(error: Exception) -> Any:
    def fails() -> None:
        raise error

    return fails


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, False),
        ({"known_s": None}, True),
        ({"known_s": 61.0}, True),
        ({"named": False}, True),
        ({"equal": False}, True),
    ],
)
def test_the_benchmark_counts_what_was_silent_late_or_biased(change: dict[str, Any], verdict: bool):
    row = {"fault": "f", "known_s": 3.0, "exit": 1, "named": True, "equal": True, "said": "x"}
    assert bad(Row(**{**row, **change})) == verdict


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "runs/a/metrics.jsonl"), "runs/a/metrics.jsonl"),
        (OSError(30, "Read-only file system", "runs/a"), "writable"),
        (OSError(122, "Disk quota exceeded"), "quota"),
        (OSError(27, "File too large", "x"), "ulimit"),
        (PermissionError(13, "Permission denied", "runs"), "right"),
        (OSError(24, "Too many open files"), "open files"),
        (OSError("[parquet] No space left on device"), "free some"),
        (RuntimeError("io error: No space left on device (os error 28)"), "free some"),
        (MemoryError(), "out of memory"),
        (wrapped(OSError(28, "No space left on device", "part-0")), "part-0"),
        (raised(failures.OutOfMemoryError), "OutOfMemoryError"),
        (failures.RayActorError("00", "dead"), "dead"),
        (ValueError("a bug"), None),
        (FileNotFoundError(2, "No such file", "x"), None),
    ],
)
def test_the_machines_failures_are_one_paragraph_and_bugs_keep_their_traceback(error: Exception, said: str | None):
    cause = machine_cause(error)
    assert (cause is None) if said is None else (cause is not None and said in cause)


SCRIPT = """
import sys, time
from parl.cli.errors import reported
try:
    with reported("; continue with: --resume"):
        try:
            print("up", flush=True)
            time.sleep(30)
        finally:
            if sys.argv[1] == "slow":
                print("cleaning", flush=True)
                time.sleep(30)
            print("cleaned", flush=True)
except BaseException as error:
    sys.exit(error.exit_code)
"""


def ended(mode: str, *numbers: signal.Signals) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    text = process.stdout.readline()
    for place, number in enumerate(numbers):
        if place:
            text += process.stdout.readline()  # it cleans up
        process.send_signal(number)
    rest, _ = process.communicate(timeout=20)
    return process.returncode, text + rest


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_cleans_up_and_says_how_to_go_on(number: signal.Signals, code: int, word: str):
    found, text = ended("fast", number)
    assert (found, "cleaned" in text, f"{word}; continue with: --resume" in text) == (code, True, True)


def test_a_second_signal_ends_at_once():
    found, text = ended("slow", signal.SIGTERM, signal.SIGTERM)
    assert found == 143 and "twice" in text and "cleaned" not in text


def test_a_ray_that_does_not_start_in_time_is_said_in_one_line():
    with (
        pytest.raises(MachineError, match="did not start within its 30 s; the load of this machine is"),
        _start_named(),
    ):
        raise Exception("The current node timed out during startup. This could happen because ...")
    with pytest.raises(KeyError), _start_named():
        raise KeyError("another")
