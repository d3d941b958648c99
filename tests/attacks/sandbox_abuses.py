"""Escapes and abuses of the sandbox: code that prints ESCAPED if it got out. Standard library only.

``open`` names the levels that are documented not to hold it, with ``/user`` only where the host is no root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from envs.sandbox import Ran

WEAK = ("rlimits",)
PRELUDE = """
import ctypes, json, os, resource, signal, socket, subprocess, sys, time
o = json.load(open('outer.json')); mark = o['mark']
libc = ctypes.CDLL(None, use_errno=True)
def out(what=True):
    if what: print('ESC' + 'APED', what, flush=True)
def tried(f, *a):
    try: return f(*a)
    except (OSError, ValueError) as e: return None
def call(*a): return libc.syscall(*a) >= 0
print('began', flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Abuse:
    """One try. ``want``: what else must hold of the run; ``least_s``: its deadline."""

    name: str
    code: str
    open: tuple[str, ...] = ()
    deadline_s: float = 5.0  # at least 1.5: a busy machine needs a second to get as far as the abuse
    collect: tuple[str, ...] = ()
    want: Callable[[Ran], bool] = field(default=lambda ran: True)


def stopped(*reasons: str) -> Callable[[Ran], bool]:
    """The run was ended by one of these limits."""
    return lambda ran: ran.why in reasons


def connects(family: str, address: str, kind: str = "STREAM") -> str:
    """Code that reaches a server of the host."""
    return (
        f"s = tried(socket.socket, socket.{family}, socket.SOCK_{kind})\n"
        f"if s: s.settimeout(1); c = tried(lambda: (s.connect({address}), s.send(b'x'), s.recv(9))); out(c)"
    )


def opens(family: int, kind: int, protocol: int = 0) -> str:
    """Code that opens a socket which a sandbox has no use for."""
    return f"out(tried(socket.socket, {family}, {kind}, {protocol}))"


USER = ("landlock/user", "rlimits/user")
NETWORK = (
    Abuse(name="tcp to the host", code=connects("AF_INET", "('127.0.0.1', o['port'])"), open=WEAK),
    Abuse(name="tcp over IPv6", code=connects("AF_INET6", "('::1', o['port6'])"), open=WEAK),
    Abuse(name="IPv4 inside IPv6", code=connects("AF_INET6", "('::ffff:127.0.0.1', o['port'])"), open=WEAK),
    Abuse(name="udp", code=connects("AF_INET", "('127.0.0.1', o['udp'])", "DGRAM"), open=WEAK),
    Abuse(name="a unix socket", code=connects("AF_UNIX", "o['unix']"), open=WEAK),
    Abuse(name="an abstract unix socket", code=connects("AF_UNIX", "chr(0) + o['abstract']"), open=WEAK),
    Abuse(name="a unix datagram", code=connects("AF_UNIX", "o['unix']", "DGRAM")),
    Abuse(name="raw ICMP", code=opens(2, 3, 1)),
    Abuse(name="a packet socket", code=opens(17, 3, 768)),
    Abuse(name="netlink", code=opens(16, 3, 0), open=WEAK),
    Abuse(name="vsock, to the hypervisor", code=opens(40, 1), open=WEAK),
    Abuse(name="the kernel's crypto sockets", code=opens(38, 5), open=WEAK),
    Abuse(name="io_uring, which no socket filter sees", code="out(call(425, 8, (ctypes.c_char * 120)()))", open=WEAK),
    Abuse(
        name="the cloud's metadata",
        code=(
            "s = tried(socket.socket)\n"
            "if s: s.settimeout(1); out(tried(s.connect, ('169.254.169.254', 80)) is not None)"
        ),
    ),
    Abuse(name="a name lookup", code="out(tried(socket.gethostbyname, 'pypi.org'))", open=WEAK),
)
FILES = (
    Abuse(name="/etc/shadow", code="out(tried(lambda: open('/etc/shadow').read()))"),
    Abuse(
        name="a private file of the user", code="out(tried(lambda: open(o['private']).read()))", open=("rlimits/user",)
    ),
    Abuse(name="a readable file outside", code="out(tried(lambda: open(o['secret']).read()))", open=WEAK),
    Abuse(name="listing /tmp", code="out(any(n == o['name'] for n in tried(os.listdir, '/tmp') or ()))", open=WEAK),
    Abuse(name="listing root's home", code="out([n for n in tried(os.listdir, '/root') or () if n != '.pyenv'])"),
    Abuse(
        name="a link out",
        code=("tried(os.symlink, o['secret'], 'l'); out(tried(lambda: open('l').read()))"),
        open=WEAK,
    ),
    Abuse(
        name="a link out, collected",
        code=("os.symlink(o['secret'], 'l'); os.makedirs('d'); os.symlink(os.path.dirname(o['secret']), 'd/l')"),
        collect=("l", "d/l/secret"),
        want=lambda ran: not ran.files,
    ),
    Abuse(
        name="a hard link out, collected",
        code="tried(os.link, o['secret'], 'l')",
        collect=("l",),
        want=lambda ran: not ran.files,
    ),
    Abuse(
        name="a FIFO, collected", code="os.mkfifo('f')", collect=("f",), want=lambda ran: not ran.files and not ran.why
    ),
    Abuse(name="a new file outside", code="out(tried(lambda: open(o['folder'] + '/new', 'w').write('x')))", open=WEAK),
    Abuse(name="a file outside, written", code="out(tried(lambda: open(o['common'], 'w').write('x')))", open=WEAK),
    Abuse(name="a file outside, removed", code="out(tried(lambda: (os.remove(o['folder'] + '/gone'), 1)))", open=WEAK),
    Abuse(
        name="a file outside, renamed in",
        code="out(tried(lambda: (os.rename(o['folder'] + '/moved', 'm'), 1)))",
        open=WEAK,
    ),
    Abuse(name="a file outside, cut", code="out(tried(lambda: (os.truncate(o['common'], 0), 1)))", open=WEAK),
    Abuse(name="rights of a file outside", code="tried(os.chmod, o['private'], 0o777)", open=("rlimits/user",)),
    Abuse(name="times of a file outside", code="tried(os.utime, o['private'], (1, 1))", open=("rlimits/user",)),
    Abuse(
        name="the interpreter's own files",
        code=("import json as j; out(tried(lambda: open(j.__file__, 'a')))\nout(tried(lambda: open('/usr/x', 'w')))"),
    ),
    Abuse(name="the kernel's settings", code="out(tried(lambda: open('/proc/sys/kernel/core_pattern', 'w')))"),
    Abuse(
        name="devices",
        code=(
            "for n in 'mem kmem kmsg port sda vda nvme0n1 loop-control fuse kvm net/tun ptmx0 rtc0 "
            "watchdog'.split():\n"
            "    out(tried(lambda: os.open('/dev/' + n, os.O_RDONLY | os.O_NONBLOCK)))"
        ),
    ),
    Abuse(
        name="a device node", code=("out(tried(lambda: (os.mknod('n', 0o60000 | 0o666, os.makedev(8, 0)), open('n'))))")
    ),
    Abuse(name="a file by its handle", code="b = (ctypes.c_char * 256)(); out(call(304, -100, b, 0))"),
    Abuse(name="5,000 folders deep", code="for i in range(5000): tried(os.mkdir, 'a'); tried(os.chdir, 'a')"),
    Abuse(name="its own folder removed", code="import shutil; shutil.rmtree(os.getcwd(), ignore_errors=True)"),
)
PROCESSES = (
    Abuse(
        name="another process's environment",
        code="out(tried(lambda: open(f\"/proc/{o['victim']}/environ\").read()))",
        open=("rlimits/user",),
    ),
    Abuse(
        name="another process's memory",
        code="out(tried(lambda: open(f\"/proc/{o['victim']}/mem\", 'rb')))",
        open=("rlimits/user",),
    ),
    Abuse(
        name="the host's environment",
        code=(
            "out('PARL_SECRET' in str(os.environ) or 'hunter2' in (tried(lambda: "
            "open('/proc/self/environ').read()) or ''))"
        ),
    ),
    Abuse(name="the worker's memory", code="out(tried(lambda: open(f'/proc/{os.getppid()}/mem', 'rb')))"),
    Abuse(
        name="the host's root folder",
        code="out(tried(os.listdir, f\"/proc/{o['victim']}/root/\"))",
        open=("rlimits/user",),
    ),
    Abuse(name="ptrace", code="out(libc.ptrace(16, o['victim'], 0, 0) == 0)", open=("rlimits/user",)),
    Abuse(name="ptrace of the worker", code="out(libc.ptrace(16, os.getppid(), 0, 0) == 0)"),
    Abuse(
        name="process_vm_readv",
        code=(
            "b = (ctypes.c_ulong * 2)(); out(ctypes.get_errno() == 14 if call(310, o['victim'], b, 1, b, 1, 0) else 0)"
        ),
    ),
    Abuse(
        name="a descriptor taken from another",
        code=("f = libc.syscall(434, o['victim'], 0); out(f >= 0 and call(438, f, 0, 0))"),
        open=("rlimits/user",),
    ),
    Abuse(name="killing another process", code="tried(os.kill, o['victim'], 9)", open=("rlimits/user",)),
    Abuse(name="stopping another process", code="tried(os.kill, o['victim'], signal.SIGSTOP)", open=("rlimits/user",)),
    Abuse(name="killing everything", code="tried(os.kill, -1, 9)", open=("rlimits/user",)),
    Abuse(
        name="killing the worker",
        code="tried(os.kill, os.getppid(), 9); time.sleep(9)",
        deadline_s=1.5,
        open=("rlimits/user",),
    ),
    Abuse(
        name="stopping the worker",
        code="tried(os.kill, os.getppid(), 19); time.sleep(9)",
        deadline_s=1.5,
        open=("rlimits/user",),
    ),
    Abuse(
        name="another process's limits",
        code=("out(tried(lambda: (resource.prlimit(o['victim'], resource.RLIMIT_NOFILE, (9, 9)), 1)))"),
        open=("rlimits/user",),
    ),
    Abuse(
        name="another process's priority",
        code="out(tried(lambda: (os.setpriority(0, o['victim'], 19), 1)))",
        open=("rlimits/user",),
    ),
    Abuse(
        name="its own limits",
        code=(
            "for n in 'AS NPROC FSIZE NOFILE CPU CORE'.split():\n"
            "    r = getattr(resource, 'RLIMIT_' + n); out(tried(lambda: (resource.setrlimit(r, (1 "
            "<< 40, 1 << 40)), 1)))"
        ),
    ),
    Abuse(name="the descriptors that were open", code="out([f for f in range(3, 1024) if tried(os.fstat, f)])"),
    Abuse(name="the host's orders by standard input", code="out(os.read(0, 100))"),
    Abuse(
        name="characters into a terminal",
        code=(
            "import fcntl, termios\n"
            "t = tried(os.open, '/dev/tty', 2)\n"
            "if t: out(tried(lambda: (fcntl.ioctl(t, termios.TIOCSTI, b'x'), 1)))"
        ),
    ),
    Abuse(
        name="a daemon",
        code=(
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    if os.fork() == 0:\n"
            "        os.execvp('sleep', ['sleep', mark])\n"
            "    os._exit(0)\n"
            "time.sleep(.2)"
        ),
        open=("rlimits/user",),
    ),
    Abuse(
        name="a daemon that nothing ties",
        code=(
            "if os.fork() == 0:\n"
            "    os.setsid(); os.closerange(0, 99); [signal.signal(s, signal.SIG_IGN) for s in (1, "
            "2, 3, 15)]\n"
            "    os.execvp('sleep', ['sleep', mark])\n"
            "time.sleep(.2)"
        ),
        open=("rlimits/user",),
    ),
    Abuse(
        name="a child that outlives the deadline",
        code="subprocess.Popen(['sleep', mark]).wait()",
        deadline_s=1.5,
        want=stopped("deadline"),
    ),
    Abuse(
        name="deaf to signals",
        code=("for s in range(1, 65):\n    tried(signal.signal, s, signal.SIG_IGN)\ntime.sleep(60)"),
        deadline_s=2.0,
        want=stopped("deadline"),
    ),
)
RIGHTS = (
    Abuse(name="mount", code="out(libc.mount(b't', b'/tmp', b'tmpfs', 0, 0) == 0)"),
    Abuse(name="unmount", code="out(libc.umount2(b'/proc', 2) == 0)"),
    Abuse(name="a user namespace of its own", code="out(libc.unshare(0x10000000) == 0)", open=WEAK),
    Abuse(name="a mount namespace of its own", code="out(libc.unshare(0x10020000) == 0)", open=WEAK),
    Abuse(
        name="a namespace by clone",
        code=("p = libc.syscall(56, 0x10000011, 0, 0, 0, 0)\nif p == 0: os._exit(0)\nout(p > 0)"),
        open=WEAK,
    ),
    Abuse(
        name="a namespace by clone3",
        code=(
            "a = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)\n"
            "p = libc.syscall(435, a, 64)\n"
            "if p == 0: os._exit(0)\n"
            "out(p > 0)"
        ),
        open=WEAK,
    ),
    Abuse(
        name="another's namespace",
        code=("f = tried(os.open, f\"/proc/{o['victim']}/ns/net\", 0)\nout(f and libc.setns(f, 0) == 0)"),
    ),
    Abuse(name="chroot", code="out(tried(lambda: (os.chroot('.'), 1)))"),
    Abuse(name="pivot_root", code="out(call(155, b'.', b'.'))"),
    Abuse(
        name="becoming root", code=("out(tried(lambda: (os.setuid(0), 1)) and os.getuid() == 0)\nout(os.getuid() == 0)")
    ),
    Abuse(
        name="a setuid program",
        code=(
            "r = subprocess.run(['su', '-c', 'id -u'], capture_output=True, "
            "stdin=subprocess.DEVNULL)\n"
            "out(r.stdout.strip() == b'0')"
        ),
    ),
    Abuse(
        name="capabilities",
        code=(
            "s = tried(lambda: open('/proc/self/status').read()) or 'CapEff:\\t0\\n'\n"
            "c = int(s.partition('CapEff:')[2].split()[0], 16); out(c)"
        ),
    ),
    Abuse(name="the clock", code="out(tried(lambda: (time.clock_settime(0, 1), 1)))"),
    Abuse(name="the host's name", code="out(tried(lambda: (socket.sethostname('x'), 1)))"),
    Abuse(name="the kernel's keys", code="out(call(248, b'user', b'k', b'x', 1, -3))", open=WEAK),
    Abuse(name="bpf", code=("out(call(321, 0, (ctypes.c_char * 128)(2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1), 128))")),
    Abuse(
        name="perf events",
        code="b = (ctypes.c_uint32 * 32)(1, 128); out(call(298, b, 0, -1, -1, 0))",
        open=("rlimits/user", "rlimits"),
    ),
    Abuse(name="userfaultfd", code="out(call(323, 1))", open=WEAK),
    Abuse(name="the kernel's log", code="out(libc.klogctl(3, (ctypes.c_char * 99)(), 99) >= 0)", open=WEAK),
)
AMOUNTS = (
    Abuse(name="a fork bomb", code="while True: tried(os.fork)", deadline_s=1.5, want=stopped("deadline", "memory")),
    Abuse(
        name="many processes",
        code=(
            "for i in range(200):\n"
            "    p = tried(os.fork)\n"
            "    if p == 0: time.sleep(9)\n"
            "    if p is None: break\n"
            "else: out()\n"
            "os._exit(0)"
        ),
    ),
    Abuse(
        name="many threads",
        code=(
            "import threading\n"
            "try:\n"
            "    for i in range(200): threading.Thread(target=time.sleep, args=(3,), "
            "daemon=True).start()\n"
            "    out()\n"
            "except RuntimeError: os._exit(0)"
        ),
    ),
    Abuse(
        name="memory",
        code="x = []\nwhile len(x) < 40: x.append(bytearray(1 << 25))\nout()",
        want=lambda ran: "MemoryError" in ran.stderr or ran.why == "memory",
    ),
    Abuse(
        name="memory of many processes",
        code=(
            "for i in range(9): os.fork() or (bytearray(os.urandom(1) * (1 << 27)), time.sleep(4))\n"
            "time.sleep(4)\n"
            "out()"
        ),
        deadline_s=3,
        want=stopped("memory"),
    ),
    Abuse(
        name="one large file",
        code=(
            "f = open('f', 'wb')\n"
            "try:\n"
            "    for i in range(99): f.write(bytes(1 << 20))\n"
            "    out()\n"
            "except OSError: pass"
        ),
    ),
    Abuse(
        name="many large files",
        code=(
            "n = 0\n"
            "try:\n"
            "    for i in range(1000): n += open(f'f{i}', 'wb').write(bytes(1 << 20)); out(n >> 20 > "
            "600)\n"
            "except OSError: pass"
        ),
        deadline_s=4,
        want=lambda ran: ran.why in ("", "disk"),
    ),
    Abuse(
        name="many small files",
        code=("try:\n    for i in range(300_000): open(f'f{i}', 'w').close()\n    out()\nexcept OSError: pass"),
        deadline_s=8,
        want=stopped("files", "deadline"),
    ),
    Abuse(name="a sparse file", code="f = open('f', 'wb'); out(tried(lambda: (f.truncate(1 << 40), 1)))"),
    Abuse(
        name="shared memory in /dev/shm",
        code=("f = tried(open, '/dev/shm/x', 'wb')\nif f: out(tried(lambda: f.write(bytes(1 << 26))))"),
    ),
    Abuse(name="shared memory of System V", code="out(libc.shmget(0, 1 << 20, 0o1666) >= 0)", open=WEAK),
    Abuse(name="memory files", code="out(tried(lambda: os.memfd_create('x')))", open=WEAK),
    Abuse(
        name="open files",
        code=(
            "f = []\nwhile len(f) < 2000:\n    try: f.append(open('/dev/null'))\n    except OSError: break\nelse: out()"
        ),
    ),
    Abuse(
        name="endless output",
        code="while True: print('x' * 9999)",
        deadline_s=1.5,
        want=lambda ran: ran.timed_out and len(ran.stdout) < 10_100,
    ),
    Abuse(
        name="endless errors",
        code="while True: os.write(2, b'x' * 9999)",
        deadline_s=1.5,
        want=lambda ran: ran.timed_out and len(ran.stderr) < 10_100,
    ),
    Abuse(name="output of no encoding", code="os.write(1, bytes(range(256)) * 9 + b'\\xff\\xfe\\x1b]0;t\\x07')"),
    Abuse(name="processor time", code="while True: pass", deadline_s=1.5, want=stopped("deadline")),
    Abuse(name="a number without end", code="print(len(str(3 ** 10 ** 8)))", deadline_s=1.5, want=stopped("deadline")),
    Abuse(
        name="a decompression bomb",
        code=(
            "import zlib\n"
            "d = zlib.compress(bytes(1 << 20))\n"
            "for i in range(3): d = zlib.compress(d)\n"
            "x = bytes().join(zlib.decompressobj().decompress(zlib.compress(bytes(1 << 28))) for i "
            "in range(4)); out(len(x))"
        ),
        want=lambda ran: "MemoryError" in ran.stderr or ran.why == "memory",
    ),
    Abuse(
        name="a stack overflow",
        code=(
            "sys.setrecursionlimit(1 << 30)\n"
            "f = lambda: f()\n"
            "class A:\n"
            "    def __getattr__(s, n): return getattr(s, n)\n"
            "A().x"
        ),
        want=lambda ran: ran.code != 0,
    ),
    Abuse(name="a core dump", code="os.abort()", collect=("core",), want=lambda ran: ran.code < 0 and not ran.files),
    Abuse(name="closed streams", code="os.close(0); os.close(1); os.close(2)"),
    Abuse(name="a waiting grandchild holds the streams", code="os.fork() or os.execvp('sleep', ['sleep', mark])"),
)
ABUSES = (*NETWORK, *FILES, *PROCESSES, *RIGHTS, *AMOUNTS)


def known_open(abuse: Abuse, level: str, user: int) -> bool:
    """Whether the level is documented not to hold it when the host is this user."""
    return level in abuse.open or (user != 0 and f"{level}/user" in abuse.open)
