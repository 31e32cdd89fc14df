"""Runs Python that a model wrote, in a child process with limits; `sandbox_child.py` sets them.

The limits stop accidents, not a determined attacker; untrusted models belong in a container.
"""

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MEMORY_BYTES = 1 << 30
FILE_BYTES = 16 << 20
CHILD = Path(__file__).with_name("sandbox_child.py")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a program ended."""

    passed: bool
    """It ran to its last line in time; leaving early by `sys.exit(0)` is not that."""
    reason: str
    """`passed`, `timeout`, or the last line of its errors."""
    stdout: str = ""
    """What it printed."""
    status: int | None = None
    """Its exit status where it left by itself, 0 when it ran to its last line; None when killed."""


def execute(
    program: str, *, stdin: str = "", timeout: float = 10.0, memory: int = MEMORY_BYTES
) -> Execution:
    """Run a program in an empty folder of its own, without network, processes or other files.

    Limits: `timeout` seconds of wall clock and as many of CPU, `memory` bytes, 16 MiB a file and
    of output, 64 open files, no environment. Linux enforces them in the kernel (rlimits, seccomp,
    Landlock); elsewhere an audit hook does for what goes through Python's own calls.
    """
    # A program that leaves by os._exit(0) before its tests would look right if 0 meant success.
    success = 64 + secrets.randbelow(64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work").mkdir()
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        (folder / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        status = _run(folder, success, timeout, memory)
        printed, errors = (_text(folder / stream) for stream in ("stdout", "stderr"))
    if status == success:
        return Execution(passed=True, reason="passed", stdout=printed, status=0)
    if status is None:
        return Execution(passed=False, reason="timeout", stdout=printed)
    reason = _reason(errors, status)
    return Execution(
        passed=False, reason=reason, stdout=printed, status=status if status >= 0 else None
    )


def execute_each(
    program: str, inputs: Sequence[str], *, timeout: float = 10.0, memory: int = MEMORY_BYTES
) -> Iterator[Execution]:
    """`execute` of one program on each input, in their order and on all cores.

    Who stops reading starts no further runs, so that a first failure ends the matter.
    """
    with ThreadPoolExecutor(max_workers=CORES) as pool:
        under_way: deque[Future[Execution]] = deque()
        for stdin in inputs:
            job = pool.submit(execute, program, stdin=stdin, timeout=timeout, memory=memory)
            under_way.append(job)
            if len(under_way) == CORES:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _run(folder: Path, success: int, timeout: float, memory: int) -> int | None:
    """The exit status, negative for a signal, None after `timeout` seconds."""
    limits = [memory, math.ceil(timeout) + 1, FILE_BYTES]
    command = [sys.executable, "-I", "-B", str(CHILD), str(folder / "program.py"), str(success)]
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context((folder / stream).open(mode))
            for stream, mode in (("stdin", "rb"), ("stdout", "wb"), ("stderr", "wb"))
        ]
        process = subprocess.Popen(
            [*command, *map(str, limits)],
            cwd=folder / "work",
            env={**ENVIRONMENT, "HOME": str(folder / "work")},
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            start_new_session=True,
        )
        try:
            return process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_group(process)


def _reason(errors: str, status: int) -> str:
    lines = errors.strip().splitlines()
    if lines:
        return lines[-1][:500]
    if -status in (signal.SIGXCPU, signal.SIGALRM):
        return "timeout"
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Children that the program left behind end with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
