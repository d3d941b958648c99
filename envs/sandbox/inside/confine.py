"""Confines the calling process for good: limits, user, Landlock, seccomp. All by system calls, no package.

Sources: man pages landlock(7), seccomp(2), capabilities(7), prctl(2); constants of linux/landlock.h,
linux/prctl.h, linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from dataclasses import dataclass

from envs.sandbox.inside import syscalls

_LIBC = ctypes.CDLL(None, use_errno=True)
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # landlock_create_ruleset, _add_rule, _restrict_self
_PDEATHSIG, _DUMPABLE, _KEEPCAPS, _SECCOMP, _NO_NEW_PRIVS, _AMBIENT = 1, 4, 8, 22, 38, 47
_SIGKILL = 9
_CAPSET, _DAC_READ_SEARCH = {"x86_64": 126, "aarch64": 91}, 2
# Rights of Landlock by the version that brought the last of them; bits of LANDLOCK_ACCESS_FS_*.
_EXECUTE, _WRITE, _READ, _READ_DIR, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_DEVICE_NODES = 1 << 6 | 1 << 11  # MAKE_CHAR, MAKE_BLOCK
_ON_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Rules:
    """What holds for untrusted code. Sizes in bytes, ``cpu_s`` in CPU seconds for each process.

    ``uid``: the user to become, None: stay. ``readable``: files and folders to read and execute.
    ``filesystem``, ``calls``: confine by Landlock, by seccomp. ``network``, ``pids``: the worker is in
    such a namespace of its own. ``keep_reading``: the interpreter is in a folder that the user may not enter.
    """

    work: str
    uid: int | None
    readable: list[str]
    filesystem: bool
    keep_reading: bool
    calls: bool
    network: bool
    pids: bool
    memory: int
    disk: int
    files: int
    processes: int
    cpu_s: int


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 without Landlock."""
    return max(0, _LIBC.syscall(_CREATE, None, 0, 1))


def protect() -> None:
    """Hide this process's memory from others of its user."""
    _checked(_LIBC.prctl(_DUMPABLE, 0, 0, 0, 0), "prctl")


def confine(rules: Rules) -> None:
    """Confine this process and all that it starts. OSError if a rule cannot be set: nothing may run then."""
    os.umask(0)
    _limit(rules, _tasks_of_user() if rules.uid is None and not rules.pids else 0)
    ruleset = _ruleset(rules) if rules.filesystem else None
    if rules.uid is not None:
        _become(rules.uid, keep_reading=rules.keep_reading)
    _checked(_LIBC.prctl(_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")
    _checked(_LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if ruleset is not None:
        _checked(_LIBC.syscall(_RESTRICT, ruleset, 0), "landlock_restrict_self")
        os.close(ruleset)
    if rules.calls:
        _filter(rules)


def _limit(rules: Rules, tasks: int) -> None:
    limits = {
        resource.RLIMIT_AS: rules.memory,
        resource.RLIMIT_CPU: rules.cpu_s,
        resource.RLIMIT_FSIZE: rules.disk,
        resource.RLIMIT_NOFILE: rules.files,
        resource.RLIMIT_NPROC: rules.processes + tasks,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in limits.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def _tasks_of_user() -> int:
    """Threads of this user on the machine: RLIMIT_NPROC counts them all."""
    count, own = 0, os.getuid()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == own:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it ended
            continue
    return count


def _become(uid: int, *, keep_reading: bool) -> None:
    """Become ``uid`` without groups or capabilities.

    ``keep_reading``: keep the right to read what Landlock allows, for an interpreter in root's own folder.
    Landlock then decides alone, and seccomp refuses the calls that this right would open.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    if keep_reading:
        _checked(_LIBC.prctl(_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setresuid(uid, uid, uid)
    if keep_reading:
        header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
        data = struct.pack("=6I", *[1 << _DAC_READ_SEARCH] * 3, 0, 0, 0)  # effective, permitted, inheritable
        _checked(_LIBC.syscall(_CAPSET[os.uname().machine], header, data), "capset")
        _checked(_LIBC.prctl(_AMBIENT, 2, _DAC_READ_SEARCH, 0, 0), "prctl")  # through exec too


def _ruleset(rules: Rules) -> int:
    version = landlock_version()
    if not version:
        raise OSError("this kernel has no Landlock")
    every = (1 << (12 + min(version, 3))) - 1 | (_IOCTL if version >= 5 else 0)
    handled = struct.pack("=QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_LIBC.syscall(_CREATE, handled, size, 0), "landlock_create_ruleset")
    for path in rules.readable:
        _allow(ruleset, path, (_EXECUTE | _READ | _READ_DIR) & every)
    for path in _DEVICES:
        _allow(ruleset, path, (_READ | _WRITE) & every)
    _allow(ruleset, rules.work, every & ~_DEVICE_NODES)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _ON_FILES
    rule = struct.pack("=Qi", rights, beneath)
    try:
        _checked(_LIBC.syscall(_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(beneath)


def _filter(rules: Rules) -> None:
    version = landlock_version() if rules.filesystem else 0
    code = syscalls.program(
        network=rules.network,
        processes=rules.pids,
        shared_user=rules.uid is None,
        signals=version >= 6,
        truncation=version >= 3 or not rules.filesystem,
    )
    lines = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(lines))
    _checked(_LIBC.prctl(_SECCOMP, 2, fprog, 0, 0), "seccomp")


def _checked(value: int, what: str) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return value
