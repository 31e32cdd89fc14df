"""Runs Python that a model wrote, in child processes with limits; `child/` holds their side.

Three walls, each as far as the machine has it: bubblewrap's namespaces, the kernel's filters
(seccomp, Landlock, rlimits), an audit hook. README says what they do not stop.
"""

import contextlib
import functools
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MEMORY_BYTES = 1 << 30
FILE_BYTES = 16 << 20
DISK_BYTES = 64 << 20
MOST_FILES = 10_000
LOOK_EVERY_S = 0.05
"""How often the disk of a program is measured."""
PROGRAM_ENDED = 3
"""Status of a tests' process whose program left before the end (`child/tests.py`)."""
CHILD = "dopd_vlm.eval.scoring.child.main"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
DEVICES = ("--proc", "/proc", "--dev", "/dev")
NAMESPACES = ("--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a program ended."""

    reason: str
    """`passed`, `timeout`, `disk`, or the last line of its errors."""
    status: int | None
    """Its exit status where it left by itself, 0 also by `sys.exit(0)`; None when killed."""
    stdout: str = ""
    """What it printed."""

    @property
    def passed(self) -> bool:
        """Status 0. Of a program alone that is its own word; of tests it is that they all held."""
        return self.status == 0


def execute(
    program: str, *, stdin: str = "", timeout: float = 10.0, memory: int = MEMORY_BYTES
) -> Execution:
    """Run a program in an empty folder of its own, without network, processes or other files.

    Limits: `timeout` seconds of wall clock and as many of CPU, `memory` bytes, 16 MiB a file and
    of output, 64 MiB and 10,000 files in all, 64 open ones, no environment. Linux enforces them in
    the kernel, the disk's sum by bubblewrap or else by a look every 0.05 s; elsewhere an audit hook
    does for what goes through Python's own calls.
    """
    with _folder(program) as folder:
        (folder / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        with _files(folder, "stdin", "stdout", "stderr") as streams:
            process = _start("script", folder, streams, timeout=timeout, memory=memory)
        end = _watch(process, process, folder, timeout)
        return _execution(end, folder)


def execute_tests(
    program: str, tests: str, *, timeout: float = 10.0, memory: int = MEMORY_BYTES
) -> Execution:
    """Whether the tests hold for the program, each in a process of its own with `execute`'s limits.

    The tests' source runs unchanged; names that it does not define are the program's, whose
    objects it reaches by pipe. Calls give and return plain values (`child/values.py`), compared
    where the program cannot reach. Arguments that a call changed in place change here where it
    returned None.
    """
    with _folder(program) as folder, _files(folder, "stdout", "stderr", "program_errors") as files:
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        start = functools.partial(_start, folder=folder, timeout=timeout, memory=memory)
        owner = start("functions", streams=(asked, answered, files[2]))
        judge = start("tests", streams=(subprocess.PIPE, *files[:2]), pipes=(ask, answer))
        for descriptor in (asked, ask, answer, answered):
            os.close(descriptor)
        try:
            _give(judge, tests)
            end = _watch(judge, owner, folder, timeout)
        finally:
            _kill_group(owner)
        if end == PROGRAM_ENDED:
            reason = _reason(_text(folder / "program_errors"), owner.returncode)
            return Execution(reason=reason, status=1)
        return _execution(end, folder)


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


@functools.cache
def bubblewrap() -> str | None:
    """The path of `bwrap` where it is installed and may make namespaces."""
    path = shutil.which("bwrap")
    if path is None:
        return None
    probe = [path, *NAMESPACES, *DEVICES, sys.executable, "-c", ""]
    return path if subprocess.run(probe, capture_output=True).returncode == 0 else None


@contextlib.contextmanager
def _folder(program: str) -> Iterator[Path]:
    """A folder with the program and an empty `work`, whatever the program leaves removed."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "work").mkdir()
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        yield folder
    finally:
        _remove(folder)


@contextlib.contextmanager
def _files(folder: Path, *names: str) -> Iterator[list[IO[bytes]]]:
    """The streams' files: stdin to read, the others to write."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context((folder / name).open("rb" if name == "stdin" else "wb"))
            for name in names
        ]


def _start(
    role: str,
    folder: Path,
    streams: Sequence[Any],
    *,
    timeout: float,
    memory: int,
    pipes: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A process of `child/main.py`; one that runs a model's code has namespaces of its own."""
    limits = [memory, math.ceil(timeout) + 1, FILE_BYTES, *pipes]
    command = [sys.executable, "-I", "-B", "-m", CHILD, role, *map(str, limits)]
    work = str(folder / "work")
    namespaces = bubblewrap() if role != "tests" else None
    if namespaces is not None:
        disk = ["--size", str(DISK_BYTES), "--tmpfs", work, "--chdir", work]
        command = [namespaces, *NAMESPACES, *DEVICES, *disk, "--", *command]
    return subprocess.Popen(
        command,
        cwd=work,
        env={**ENVIRONMENT, "HOME": work},
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        pass_fds=pipes,
        start_new_session=True,
    )


def _give(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(text.encode("utf-8", "replace"))


def _watch(
    process: subprocess.Popen[bytes],
    program: subprocess.Popen[bytes],
    folder: Path,
    timeout: float,
) -> int | str:
    """The process's exit status, negative for a signal; else why it was ended.

    bubblewrap gives a signal as 128 and its number, as shells do.


    It waits for `process` while `program`, the same or another, must keep within the disk's limits.
    """
    end = time.monotonic() + timeout
    try:
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout=min(LOOK_EVERY_S, left))
                inside = process is program and bubblewrap() is not None
                return 128 - status if inside and status > 128 else status
            if _uses_too_much(folder / "work", program.pid):
                return "disk"
        return "timeout"
    finally:
        _kill_group(process)


def _innermost(pid: int) -> int:
    """The process itself, or inside bubblewrap's own processes the one that runs the program."""
    with contextlib.suppress(OSError, ValueError):
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
    return pid


def _uses_too_much(folder: Path, pid: int) -> bool:
    """Whether files below the folder, and deleted ones that the process holds open, pass the limits."""
    blocks: dict[int, int] = {}
    inner = _innermost(pid)
    descriptors = f"/proc/{inner}/fd"
    folders = [str(folder) if inner == pid else f"/proc/{inner}/root{folder}", descriptors]
    while folders:
        place = folders.pop()
        # Both may vanish while they are read: the program goes on.
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    state = entry.stat(follow_symlinks=place == descriptors)
                    if stat.S_ISDIR(state.st_mode) and not entry.is_symlink():
                        folders.append(entry.path)
                    blocks[state.st_ino] = 0 if stat.S_ISCHR(state.st_mode) else state.st_blocks
                if len(blocks) > MOST_FILES or sum(blocks.values()) * 512 > DISK_BYTES:
                    return True
    return False


def _execution(end: int | str, folder: Path) -> Execution:
    printed, errors = (_text(folder / name) for name in ("stdout", "stderr"))
    if isinstance(end, str):
        return Execution(reason=end, status=None, stdout=printed)
    if end == 0:
        return Execution(reason="passed", status=0, stdout=printed)
    return Execution(reason=_reason(errors, end), status=end if end > 0 else None, stdout=printed)


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


def _remove(folder: Path) -> None:
    """Also what Python cannot: folders nested deeper than it recurses, or made unreadable."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], capture_output=True)
        subprocess.run(["rm", "-rf", str(folder)], check=True, capture_output=True)
