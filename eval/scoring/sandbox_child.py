"""The process that runs one program of a model; `sandbox.py` starts it as a script.

Everything is taken away after the interpreter has started and before the program does: memory, CPU
and file sizes by rlimits, network and processes by a seccomp filter, files outside by Landlock. An
audit hook says the same in Python's own calls, for kernels that have neither. Standard library only.

Arguments: program file, success status, memory in bytes, CPU seconds, file size in bytes.
"""

import contextlib
import ctypes
import os
import resource
import struct
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPEN_FILES = 64
SYSTEM = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/lib", "/lib64",
    "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom",
)  # fmt: skip
"""What interpreters and their libraries read outside their own folders."""
FORBIDDEN = (
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "subprocess.", "os.system", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.startfile",
    "os.kill", "pty.", "signal.pthread_kill",
)  # fmt: skip
"""Audit events, or how they start, that a program must not cause."""
PATH_EVENTS = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

ALLOW, DENY, NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
CLONE_THREAD = 0x00010000
CALLS = {
    "x86_64": (0xC000003E, 56, (41, 57, 58, 59, 62, 101, 311, 322, 424, 425)),
    "aarch64": (0xC00000B7, 220, (117, 129, 198, 221, 271, 281, 424, 425)),
}
"""Machine -> audit number, clone, and socket, fork, vfork, execve, kill, ptrace, process_vm_writev,
execveat, pidfd_send_signal and io_uring_setup as far as it has them."""
CLONE3 = 435
LANDLOCK_READ, LANDLOCK_ALL = 0b1101, 0x1FFF
"""Execute, read file and read folder; every right of the interface's first version."""


def main() -> None:
    """Run the program; its status is the given one only when it ran to its end."""
    path, status, *limits = sys.argv[1:]
    source = Path(path).read_text(encoding="utf-8")
    memory, seconds, file_size = map(int, limits)
    _restrict(memory, seconds, file_size)
    # Classes and pickles of the program look for their module under this name.
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    exec(compile(source, "program.py", "exec"), module.__dict__)
    for stream in {sys.stdout, sys.__stdout__}:
        if stream is not None:
            stream.flush()
    os._exit(int(status))


def _restrict(memory: int, seconds: int, file_size: int) -> None:
    readable = [*{sys.prefix, sys.base_prefix}, *SYSTEM]
    with contextlib.suppress(OSError, KeyError):
        _landlock([path for path in readable if os.path.exists(path)], os.getcwd())
    with contextlib.suppress(OSError, KeyError):
        _seccomp()
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    sys.addaudithook(_hook(readable, os.getcwd()))


def _hook(readable: Sequence[str], writable: str) -> Any:
    roots = [os.path.realpath(path) for path in (*readable, writable)]
    own = os.path.realpath(writable)

    def is_under(path: str, root: str) -> bool:
        return path == root or path.startswith(root.rstrip("/") + "/")

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event not in PATH_EVENTS or not isinstance(arguments[0], str | bytes):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        is_reading = event in ("os.listdir", "os.scandir") or (
            event == "open" and not (arguments[2] or 0) & WRITING
        )
        if not any(is_under(path, root) for root in (roots if is_reading else [own])):
            raise PermissionError(f"{event} {path!r} is outside the program's folder")

    return check


def _seccomp() -> None:
    """Calls that make sockets, processes or signals fail; threads may be made."""
    audit, clone, denied = CALLS[os.uname().machine]

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    steps = [step(load, 4), step(equal, audit, 1), step(give, ALLOW), step(load, 0)]
    for number, verdict in [*((n, DENY) for n in denied), (CLONE3, NO_SUCH_CALL)]:
        steps += [step(equal, number, 0, 1), step(give, verdict)]
    steps += [step(equal, clone, 0, 3), step(load, 16), step(any_bit, CLONE_THREAD, 1)]
    steps += [step(give, DENY), step(give, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    _call(_libc().prctl, 38, 1, 0, 0, 0)
    _call(_libc().prctl, 22, 2, ctypes.create_string_buffer(program), 0, 0)


def _landlock(readable: Sequence[str], writable: str) -> None:
    """Files outside the named ones cannot be opened. The call numbers are the same everywhere."""
    system = _libc().syscall
    head = ctypes.create_string_buffer(struct.pack("Q", LANDLOCK_ALL))
    rules = _call(system, 444, head, 8, 0)
    for path, rights in [*((one, LANDLOCK_READ) for one in readable), (writable, LANDLOCK_ALL)]:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights &= LANDLOCK_ALL if os.path.isdir(path) else 0b111
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened))
        _call(system, 445, rules, 1, rule, 0)
        os.close(opened)
    _call(_libc().prctl, 38, 1, 0, 0, 0)
    _call(system, 446, rules, 0)
    os.close(rules)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: Any, *arguments: Any) -> int:
    found = function(*arguments)
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


if __name__ == "__main__":
    main()
