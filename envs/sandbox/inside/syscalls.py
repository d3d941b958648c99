"""The seccomp filter: which system calls untrusted code may not make. A BPF program, without libseccomp.

The filter allows what it does not name. Numbers are of ``asm/unistd_64.h`` (x86-64) and of
``asm-generic/unistd.h`` (aarch64); other machines have no filter, hence no level that needs one.
"""

from __future__ import annotations

import errno
import platform
import struct

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
_COLUMN = {"x86_64": 0, "aarch64": 1}

# fmt: off
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97),
    "setns": (308, 268), "clone": (56, 220), "clone3": (435, 435), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "settimeofday": (164, 170), "adjtimex": (159, 171), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "vhangup": (153, 58), "fanotify_init": (300, 262), "ioctl": (16, 29), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "personality": (135, 92), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "lookup_dcookie": (212, 18), "uselib": (134, None),
    "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "setsid": (112, 157), "setpgid": (109, 154), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88),
}
# Never: escapes, the kernel's wide surfaces, and memory that no limit counts.
NEVER = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "mount", "umount2", "pivot_root", "chroot",
    "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "unshare", "setns", "bpf",
    "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot",
    "swapon", "swapoff", "syslog", "acct", "quotactl", "quotactl_fd", "settimeofday", "adjtimex", "clock_settime",
    "clock_adjtime", "sethostname", "setdomainname", "iopl", "ioperm", "modify_ldt", "open_by_handle_at",
    "name_to_handle_at", "vhangup", "fanotify_init", "memfd_create", "memfd_secret", "shmget", "msgget", "semget",
    "mq_open", "personality", "pidfd_getfd", "process_madvise", "migrate_pages", "move_pages", "mbind",
    "set_mempolicy", "lookup_dcookie", "uselib",
)
# Without a process namespace: what acts on other processes of the same user.
OTHERS = ("setpriority", "ioprio_set", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")
SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
# Without a namespace, leaving the process group would escape its killing. Answered as done, but not done.
GROUP = ("setsid", "setpgid")
# Landlock does not see these, and the files outside belong to the same user. Answered as done, but not done.
ATTRIBUTES = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr",
    "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "utime", "utimes", "futimesat", "utimensat",
)
# fmt: on
_NAMESPACES = 0x7E020000  # CLONE_NEW*: a clone with one of them is an unshare
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # put characters into a terminal's input
_FAMILIES = (1, 2, 10)  # unix, inet, inet6: each is empty in a network namespace of one's own
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG = 0, 4, (16, 24, 32)
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in ARCHITECTURE


def program(*, network: bool, processes: bool, shared_user: bool, signals: bool, truncation: bool) -> bytes:
    """The BPF program, as an array of ``struct sock_filter``.

    ``network``: the process has a network namespace of its own, so sockets reach nobody. ``processes``: it
    has a process namespace of its own. ``shared_user``: files and processes outside have its user.
    ``signals``, ``truncation``: what Landlock already confines, by its version.
    """
    column, lines = _COLUMN[platform.machine()], [_line(_LOAD, _ARCH)]
    lines += [_line(_EQUAL, ARCHITECTURE[platform.machine()], 1, 0), _line(_RETURN, _KILL), _line(_LOAD, _NR)]
    if column == 0:  # the x32 calls of x86-64 are the same calls under other numbers
        lines += [_line(_AT_LEAST, 0x40000000, 0, 1), _line(_RETURN, _ERRNO | errno.ENOSYS)]

    def answer(names: tuple[str, ...], value: int) -> None:
        for number in (NUMBERS[name][column] for name in names):
            if number is not None:
                lines.extend([_line(_EQUAL, number, 0, 1), _line(_RETURN, _ERRNO | value)])

    def where(name: str, argument: int, tests: list[bytes]) -> None:
        number = NUMBERS[name][column] or 0
        block = [_line(_LOAD, _ARG[argument]), *tests, _line(_RETURN, _ERRNO | errno.EPERM), _line(_LOAD, _NR)]
        lines.extend([_line(_EQUAL, number, 0, len(block)), *block])

    answer(NEVER, errno.EPERM)
    answer(("clone3",), errno.ENOSYS)  # its flags are behind a pointer; the C library then uses clone
    where("clone", 0, [_line(_ANY_BIT, _NAMESPACES, 0, 1)])
    where("ioctl", 1, [_line(_EQUAL, _TIOCSTI, 1, 0), _line(_EQUAL, _TIOCLINUX, 0, 1)])
    if network:
        where("socket", 0, [_line(_EQUAL, family, 3 - at, 0) for at, family in enumerate(_FAMILIES)])
    else:
        answer(("socket",), errno.EPERM)
    if not processes:
        answer(GROUP, 0)
        answer(OTHERS, errno.EPERM)
        where("prlimit64", 0, [_line(_EQUAL, 0, 1, 0)])
    if shared_user and not processes and not signals:
        answer(SIGNALS, errno.EPERM)
    if shared_user and not network:  # no namespaces: the host's files are there, Landlock alone guards them
        answer(ATTRIBUTES, 0)
    if not truncation:
        answer(("truncate",), errno.EPERM)
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
