"""What a process gives up before it runs a program: rlimits, Landlock, a seccomp filter, an audit hook.

The kernel's three hold against any code. The audit hook says the same in Python's own calls, for
kernels that lack them; code that calls C passes it by.
"""

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence
from typing import Any

from .system_calls import AUDIT, CHECKED, NEWEST, PLAIN

OPEN_FILES = 64
SYSTEM = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/lib", "/lib64",
    "/etc/ld.so.cache", "/etc/localtime", "/dev/zero", "/dev/urandom",
)  # fmt: skip
"""What interpreters and their libraries read outside their own folders."""
SINK = "/dev/null"
FORBIDDEN = (
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "subprocess.", "os.system", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.startfile",
    "os.kill", "pty.", "signal.pthread_kill", "os.truncate", "os.chmod", "os.chown", "os.utime",
    "os.setxattr", "os.chflags", "resource.prlimit",
)  # fmt: skip
"""Audit events, or how they start, that a program must not cause."""
PATH_EVENTS = {
    "open": (0,), "os.listdir": (0,), "os.scandir": (0,), "os.remove": (0,), "os.mkdir": (0,),
    "os.rmdir": (0,), "os.rename": (0, 1), "os.link": (0, 1), "os.symlink": (1,),
}  # fmt: skip
"""Audit events -> which of their arguments are paths that must be the program's."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

ALLOW, DENY, NO_SUCH_CALL, KILL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, MASK, GIVE = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ARGUMENTS = (16, 24, 32, 40, 48)
"""Offsets of the arguments' low halves in the filter's data; the high halves follow 4 bytes later."""
CLONE_THREAD = 0x00010000
TERMINAL_QUERIES = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX and FIOCLEX."""
OWNER_COMMANDS = (8, 10, 15, 1024, 1026)
"""fcntl's F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE and F_NOTIFY: they send signals."""
THREAD_NAMES = (15, 16)
"""prctl's PR_SET_NAME and PR_GET_NAME."""

READ_FILE, READ_TREE, WRITE_SINK = 0b101, 0b1101, 0b110
"""Landlock rights: execute and read a file; the same with reading folders; read and write."""
VERSIONS = ((1, 0x1FFF), (2, 0x3FFF), (3, 0x7FFF), (5, 0xFFFF))
"""Interface version -> every right on files; 2 adds moving between folders, 3 truncating."""
NETWORK, SCOPES = 0b11, 0b11
"""Binding and connecting, since version 4; abstract sockets and signals of others, since 6."""


def restrict(memory: int, seconds: int, file_size: int) -> None:
    """Take away everything but the current folder, for the rest of this process.

    `memory` and `file_size` are bytes, `seconds` CPU seconds.
    """
    readable = [*{sys.prefix, sys.base_prefix, *sys.path}, *SYSTEM]
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError, KeyError):
        _landlock([path for path in readable if os.path.exists(path)], os.getcwd())
    with contextlib.suppress(OSError, KeyError):
        _seccomp()
    sys.addaudithook(_hook(readable, os.getcwd()))


def _hook(readable: Sequence[str], writable: str) -> Any:
    own = os.path.realpath(writable)
    roots = [*(os.path.realpath(path) for path in readable), own]

    def is_under(path: str, root: str) -> bool:
        return path == root or path.startswith(root.rstrip("/") + "/")

    def check_path(event: str, path: str, is_reading: bool) -> None:
        path = os.path.realpath(path)
        if path != SINK and not any(
            is_under(path, one) for one in (roots if is_reading else [own])
        ):
            raise PermissionError(f"{event} {path!r} is outside the program's folder")

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        is_reading = event in ("os.listdir", "os.scandir") or (
            event == "open" and not (arguments[2] or 0) & WRITING
        )
        for place in PATH_EVENTS.get(event, ()):
            if isinstance(arguments[place], str | bytes):
                check_path(event, os.fsdecode(arguments[place]), is_reading)

    return check


def _seccomp() -> None:
    """Calls that `system_calls` does not name fail; one of another architecture ends the process."""
    steps = _filter(os.uname().machine)
    code = ctypes.create_string_buffer(b"".join(steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    _call(_libc().prctl, 38, 1, 0, 0, 0)
    _call(_libc().prctl, 22, 2, ctypes.create_string_buffer(program), 0, 0)


def _filter(machine: str) -> list[bytes]:
    steps = [_step(LOAD, 4), _step(EQUAL, AUDIT[machine], 1), _step(GIVE, KILL), _step(LOAD, 0)]
    for number in PLAIN[machine]:
        steps += [_step(EQUAL, number, 0, 1), _step(GIVE, ALLOW)]
    for name, number in CHECKED[machine].items():
        block = _checks(name)
        steps += [_step(EQUAL, number, 0, len(block)), *block]
    return [*steps, _step(AT_LEAST, NEWEST + 1, 0, 1), _step(GIVE, NO_SUCH_CALL), _step(GIVE, DENY)]


def _checks(name: str) -> list[bytes]:
    """The part of the filter that judges a call by its arguments."""
    first, second, third, _, fifth = ARGUMENTS
    if name == "clone":  # threads, not processes
        return [_step(LOAD, first), _step(ANY_BIT, CLONE_THREAD, 0, 1), *_verdicts(ALLOW, DENY)]
    if name == "clone3":  # its flags are in memory, where no filter looks; libraries fall back
        return [_step(GIVE, NO_SUCH_CALL)]
    if name == "ioctl":
        return _one_of(second, TERMINAL_QUERIES, ALLOW, DENY)
    if name == "fcntl":
        return _one_of(second, OWNER_COMMANDS, DENY, ALLOW)
    if name == "prctl":
        return _one_of(first, THREAD_NAMES, ALLOW, DENY)
    if name == "tgkill":  # abort() and raise() signal the own process
        return _one_of(first, (os.getpid(),), ALLOW, DENY)
    if name == "socketpair":  # of streams, which event loops use: a datagram could go anywhere
        return [
            _step(LOAD, second),
            _step(MASK, 0xF),
            _step(EQUAL, 1, 0, 1),
            *_verdicts(ALLOW, DENY),
        ]
    if name == "sendto":  # without an address
        return _all_zero(fifth, fifth + 4)
    # prlimit64 of the own process: reading any limit, setting the stack's
    stack = _one_of(second, (resource.RLIMIT_STACK,), ALLOW, None)
    return [
        _step(LOAD, first),
        _step(EQUAL, 0, 1),
        _step(GIVE, DENY),
        *stack,
        *_all_zero(third, third + 4),
    ]


def _one_of(place: int, values: Sequence[int], hit: int, miss: int | None) -> list[bytes]:
    steps = [_step(LOAD, place)]
    for value in values:
        steps += [_step(EQUAL, value, 0, 1), _step(GIVE, hit)]
    return steps if miss is None else [*steps, _step(GIVE, miss)]


def _all_zero(*places: int) -> list[bytes]:
    steps = []
    for place in places:
        steps += [_step(LOAD, place), _step(EQUAL, 0, 1), _step(GIVE, DENY)]
    return [*steps, _step(GIVE, ALLOW)]


def _verdicts(yes: int, no: int) -> list[bytes]:
    return [_step(GIVE, yes), _step(GIVE, no)]


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction of a classic BPF program; `yes` and `no` skip that many of the next ones."""
    return struct.pack("HBBI", code, yes, no, value)


def _landlock(readable: Sequence[str], writable: str) -> None:
    """Only the named files can be opened. The call numbers are the same on every machine."""
    system = _libc().syscall
    version = _call(system, 444, None, 0, 1)
    rights = [every for since, every in VERSIONS if since <= version][-1]
    fields = [rights, *([NETWORK] if version >= 4 else []), *([SCOPES] if version >= 6 else [])]
    head = ctypes.create_string_buffer(struct.pack(f"{len(fields)}Q", *fields))
    rules = _call(system, 444, head, 8 * len(fields), 0)
    for path in readable:
        _grant(rules, path, READ_TREE if os.path.isdir(path) else READ_FILE)
    _grant(rules, SINK, WRITE_SINK)
    _grant(rules, writable, rights)
    _call(_libc().prctl, 38, 1, 0, 0, 0)
    _call(system, 446, rules, 0)
    os.close(rules)


def _grant(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place))
    _call(_libc().syscall, 445, rules, 1, rule, 0)
    os.close(place)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: Any, *arguments: Any) -> int:
    value = function(*arguments)
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value
