"""Runs Python that a model wrote, in a child process with limits and, where possible, no network.

The limits stop accidents, not a determined attacker; untrusted models belong in a container.
"""

import contextlib
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
OPEN_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a program ended."""

    passed: bool
    reason: str
    """`passed`, `timeout`, or the last line of its errors."""


def execute(program: str, *, timeout: float = 10.0) -> Execution:
    """Whether the program ends with status 0 in time, in an empty folder of its own.

    Limits: `timeout` seconds of wall clock and of CPU, 1 GiB of memory, files of 1 MiB, 64 open
    files, no environment, no core dumps; its own network namespace where `unshare` may make one.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*_no_network(), sys.executable, "-I", "-c", program]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=functools.partial(_limit, int(timeout) + 1),
        )
        try:
            _, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            return Execution(passed=False, reason="timeout")
        _kill_group(process)
    lines = errors.decode(errors="replace").strip().splitlines()
    passed = process.returncode == 0
    reason = lines[-1] if lines else f"exit status {process.returncode}"
    return Execution(passed=passed, reason="passed" if passed else reason)


def _limit(seconds: int) -> None:
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Children that the program left behind end with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@functools.cache
def _no_network() -> tuple[str, ...]:
    """The command that takes the network away, or nothing where the kernel forbids it."""
    command = ("unshare", "--net", "--map-root-user")
    if shutil.which(command[0]) is None:
        return ()
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if done.returncode == 0 else ()
