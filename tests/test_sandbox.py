"""What a program may not do: each limit by a program that tries it, with and without Python's own hook."""

import ctypes
import sys
import time
from pathlib import Path

import pytest

from dopd_vlm.eval.scoring import sandbox
from dopd_vlm.eval.scoring.sandbox import execute

IS_LINUX = sys.platform == "linux"
HAS_LANDLOCK = IS_LINUX and ctypes.CDLL(None).syscall(444, 0, 0, 1) >= 1
BY_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
"""Calls through C do not pass the audit hook: what stops them is the kernel."""


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import socket\nsocket.socket()", "PermissionError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("import urllib.request as u\nu.urlopen('http://localhost')", "Error"),
        ("x = bytearray(4 << 30)", "MemoryError"),
        ("open('f', 'wb').write(b'x' * (1 << 20) * 100)", "File too large"),
        ("with open('f', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))", "File too large"),
        ("while True: print('x' * 1000)", "File too large"),
        ("fs = [open('/dev/null') for _ in range(99)]", "Too many open files"),
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import os\nos.system('true')", "PermissionError"),
        ("import multiprocessing as m\nm.Process(target=print).start()", "PermissionError"),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open('../program.py').read()", "PermissionError"),
        ("open('/proc/self/environ').read()", "PermissionError"),
        ("import os\nos.listdir('/')", "PermissionError"),
        ("open('/tmp/leak', 'w')", "PermissionError"),
        ("import shutil\nshutil.rmtree('/tmp')", "PermissionError"),
        ("import os\nos.environ['SECRET']", "KeyError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import os\nos.abort()", "SIGABRT"),
    ],
)
def test_a_program_cannot(program: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    found = execute(program, timeout=5.0)
    assert not found.passed and reason in found.reason, found.reason


@pytest.mark.skipif(not HAS_LANDLOCK, reason="the kernel has no Landlock, the hook stands alone")
@pytest.mark.parametrize(
    "call",
    [
        "libc.socket(2, 1, 0)",
        "libc.fork()",
        "libc.kill(os.getppid(), 0)",
        "libc.open(b'/etc/passwd', 0)",
        "libc.open(b'/tmp/leak', 0o101)",
        "libc.execl(b'/bin/true', b'true', None)",
    ],
)
def test_nor_through_c(call: str) -> None:
    found = execute(BY_LIBC + f"print({call}, ctypes.get_errno())", timeout=5.0)
    assert found.passed and found.stdout in ("-1 1\n", "-1 13\n", "-1 30\n")


@pytest.mark.parametrize("program", ["import time\ntime.sleep(60)", "while True: pass"])
def test_time_is_limited(program: str) -> None:
    started = time.monotonic()
    assert execute(program, timeout=0.5).reason == "timeout"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "program",
    [
        "import os\nassert os.listdir('.') == []\nopen('mine', 'w').write('1')\nassert open('mine').read()",
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
        "import numpy\nassert numpy.ones(3).sum() == 3",
        "import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))",
        "import tempfile, datetime, zoneinfo, random, decimal",
        "import os\nopen(os.devnull, 'w').write('x')",
        "import resource as r\nr.setrlimit(r.RLIMIT_STACK, (1 << 20, 1 << 20))",
        "f = open('f', 'w+')\nf.write('abc')\nf.truncate(1)\nimport os\nos.mkdir('d')\nos.rename('f', 'd/f')",
    ],
)
def test_ordinary_programs_run(program: str) -> None:
    found = execute(program, timeout=10.0)
    assert found.passed, found.reason


def test_input_and_output() -> None:
    found = execute("print(int(input()) + 1)\nraise SystemExit", stdin="41\n", timeout=5.0)
    assert (found.stdout, found.status, found.reason) == ("42\n", 0, "passed")


def test_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    execute("open('f', 'w').write('1')", timeout=5.0)
    assert list(tmp_path.iterdir()) == []
