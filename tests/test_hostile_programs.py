"""Programs that try to count as right without being so, and programs that try to get out."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopd_vlm.eval.scorers import scorer
from dopd_vlm.eval.scoring import sandbox
from dopd_vlm.eval.scoring.child import values
from dopd_vlm.eval.scoring.programs import cases_gold
from dopd_vlm.eval.scoring.sandbox import Execution, execute, execute_tests
from dopd_vlm.types import Sample, View

FIXTURES = Path(__file__).parent / "fixtures"
HAS_WALLS = sys.platform == "linux" and ctypes.CDLL(None).syscall(444, 0, 0, 1) >= 3
walled = pytest.mark.skipif(not HAS_WALLS, reason="needs Linux with Landlock of version 3")
TEMPLATE = (
    "def double(x):\n    return 2 * x\n\ndef triple(x):\n    '''x three times'''\n{completion}\n\n"
    "def check(candidate):\n    assert candidate(4) == 12\n    assert candidate(5) == double(5) + 5\n"
    "    assert candidate('ab') == 'ababab'\n\ncheck(triple)\n"
)
CASES = cases_gold(
    [json.dumps([{"input": str(x), "output": str(3 * x)} for x in (4, 5)]), "[]",
     json.dumps({"func_name": "triple"})]
)  # fmt: skip
CHEATS = dict(
    section.split("\n", 1)
    for section in (FIXTURES / "cheats.txt").read_text(encoding="utf-8").split("#### ")[1:]
)
"""Name -> program that must not count as right."""


def sample(answer: str) -> Sample:
    return Sample(uid="q", question="?", answer=answer, plain=View(), privileged=View())


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(name: str) -> None:
    code = scorer("code", timeout=1.5)(CHEATS[name], sample(TEMPLATE))
    tests = scorer("tests", timeout=0.7)(CHEATS[name], sample(CASES))
    assert (code.correct, tests.correct) == (0.0, 0.0), (code.rule, tests.rule)
    assert code.rule and tests.rule


def test_the_right_program_passes_where_the_cheats_do_not() -> None:
    for program in ("    return 3 * x", "def triple(x): return 3 * x"):
        assert scorer("code")(program, sample(TEMPLATE)).correct == 1.0
    assert scorer("tests")("def triple(x): return 3 * x", sample(CASES)).correct == 1.0


BY_C = """
import ctypes, mmap, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    return libc.syscall(*arguments), ctypes.get_errno()
"""
OTHER_ARCHITECTURE = """
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\\xb8" + struct.pack("<I", 20) + b"\\xcd\\x80\\xc3")
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
ESCAPES = {
    "truncate": "libc.truncate(VICTIM, 3)",
    "open": "libc.open(VICTIM, 2)",
    "open to truncate": "libc.open(VICTIM, 0o1000 | 1)",
    "chmod": "libc.chmod(VICTIM, 0)",
    "fchmodat": "libc.fchmodat(-100, VICTIM, 0, 0)",
    "fchmodat2": "call(452, -100, VICTIM, 0, 0)[0]",
    "chown": "libc.chown(VICTIM, 1, 1)",
    "lchown": "libc.lchown(VICTIM, 1, 1)",
    "utime": "libc.utime(VICTIM, None)",
    "utimes": "libc.utimes(VICTIM, None)",
    "utimensat": "libc.utimensat(-100, VICTIM, None, 0)",
    "setxattr": "libc.setxattr(VICTIM, b'user.x', b'1', 1, 0)",
    "unlink": "libc.unlink(VICTIM)",
    "rename": "libc.rename(VICTIM, b'mine')",
    "link": "libc.link(VICTIM, b'mine')",
    "kill": "libc.kill(PID, 9)",
    "kill all": "libc.kill(-1, 0)",
    "tkill": "call(200, PID, 9)[0]",
    "tgkill": "call(234, PID, PID, 9)[0]",
    "rt_sigqueueinfo": "call(129, PID, 9, ctypes.create_string_buffer(128))[0]",
    "rt_tgsigqueueinfo": "call(297, PID, PID, 9, ctypes.create_string_buffer(128))[0]",
    "pidfd_open": "call(434, PID, 0)[0]",
    "pidfd_send_signal": "call(424, 0, 9, None, 0)[0]",
    "F_SETOWN": "libc.fcntl(0, 8, PID)",
    "prlimit": "call(302, PID, 0, struct.pack('2Q', 1, 1), None)[0]",
    "own limits": "call(302, 0, 9, struct.pack('2Q', 1 << 40, 1 << 40), None)[0]",
    "setpriority": "libc.setpriority(0, PID, 19)",
    "sched_setaffinity": "libc.sched_setaffinity(PID, 8, b'\\x01' + bytes(7))",
    "process_vm_readv": "call(310, PID, None, 0, None, 0, 0)[0]",
    "process_vm_writev": "call(311, PID, None, 0, None, 0, 0)[0]",
    "ptrace": "call(101, 16, PID, 0, 0)[0]",
    "shmget": "libc.shmget(0, 4096, 0o1600)",
    "msgget": "libc.msgget(0, 0o1600)",
    "semget": "libc.semget(0, 1, 0o1600)",
    "memfd_create": "libc.memfd_create(b'x', 0)",
    "fork": "libc.fork()",
    "vfork": "call(58)[0]",
    "clone": "call(56, 17, 0, 0, 0, 0)[0]",
    "execve": "libc.execve(b'/bin/true', None, None)",
    "socket": "libc.socket(2, 1, 0)",
    "unix socket": "libc.socket(1, 1, 0)",
    "datagram pair": "libc.socketpair(1, 2, 0, ctypes.create_string_buffer(8))",
    "mount": "libc.mount(b'none', b'.', b'tmpfs', 0, None)",
    "unshare": "libc.unshare(0x10000000)",
    "setsid": "libc.setsid()",
    "setuid": "libc.setuid(1)",
    "chroot": "libc.chroot(b'.')",
    "mknod": "call(133, b'node', 0o10600, 0)[0]",
    "io_uring": "call(425, 1, None)[0]",
    "bpf": "call(321, 0, None, 0)[0]",
    "keyctl": "call(250, 0, 0)[0]",
    "perf": "call(298, None, 0, 0, 0, 0)[0]",
    "terminal input": "libc.ioctl(0, 0x5412, b'x')",
    "file flags": "libc.ioctl(libc.open(b'.', 0), 0x40086602, b'\\x10' + bytes(7))",
    "dumpable": "libc.prctl(4, 0, 0, 0, 0)",
    "open_by_handle_at": "call(304, -100, None, 0)[0]",
    "open outside": "libc.open(b'/etc/passwd', 0)",
    "proc": "libc.open(b'/proc/%d/mem' % PID, 0)",
    "create outside": "libc.open(b'/tmp/leak', 0o101)",
    "x32 fork": "call(0x40000000 + 57)[0]",
}


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A file and a process that nothing may happen to."""
    path = tmp_path_factory.mktemp("victim") / "victim.txt"
    path.write_text("a file of the user")
    process = subprocess.Popen(["sleep", "600"])
    yield path, process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


def state(path: Path) -> tuple[str, os.stat_result]:
    return path.read_text(), os.stat(path)


@walled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize("names", [list(ESCAPES)[start::6] for start in range(6)])
def test_nothing_gets_out_through_c(names: list[str], victim: tuple[Path, int]) -> None:
    path, pid = victim
    before = state(path)
    head = f"{BY_C}\nVICTIM, PID = {os.fsencode(path)!r}, {pid}\n"
    tries = "".join(f"print({name!r}, {ESCAPES[name]}, flush=True)\n" for name in names)
    end = execute(head + tries)
    assert end.status == 0, end.reason
    assert end.stdout.splitlines() == [f"{name} -1" for name in names]
    assert state(path)[0] == before[0]
    kept = ("st_mode", "st_uid", "st_size", "st_mtime_ns", "st_nlink")
    assert [getattr(state(path)[1], k) for k in kept] == [getattr(before[1], k) for k in kept]


@walled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86's")
def test_calls_of_another_architecture_end_the_program() -> None:
    end = execute(BY_C + OTHER_ARCHITECTURE + "print('alive')")
    assert (end.status, end.stdout) == (None, "") and "SIGSYS" in end.reason


@walled
@pytest.mark.parametrize(
    "call",
    ["os.truncate(V, 3)", "os.chmod(V, 0)", "os.chown(V, 1, 1)", "os.utime(V)", "os.link(V, 'x')",
     "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", "os.symlink('x', '/tmp/leak')",
     "os.mkfifo('/tmp/leak')", "os.setpriority(0, os.getppid(), 5)", "os.nice(5)",
     "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"],
)  # fmt: skip
def test_nor_through_python(call: str, victim: tuple[Path, int]) -> None:
    before = state(victim[0])[0]
    end = execute(f"import os, resource\nV = {str(victim[0])!r}\n{call}")
    assert end.status == 1 and any(
        kind in end.reason for kind in ("PermissionError", "ValueError", "Read-only")
    )
    assert state(victim[0])[0] == before


DISK = {
    "many files": "for i in range(99): open(str(i), 'wb').write(bytes(12 << 20))",
    "deleted files": """
import os
kept = []
for i in range(60):
    kept.append(open('f', 'wb'))
    os.unlink('f')
    kept[-1].write(bytes(12 << 20))
    kept[-1].flush()
""",
    "small files": "for i in range(10**7): open(str(i), 'wb').close()",
}


@walled
@pytest.mark.parametrize("name", DISK)
@pytest.mark.parametrize("namespaces", [False, True])
def test_the_disk_is_bounded(name: str, namespaces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sandbox.bubblewrap() if namespaces else None
    if namespaces and path is None:
        pytest.skip("bubblewrap is not installed, or may not make namespaces")
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: path)
    end = execute(DISK[name] + "\nimport time\ntime.sleep(5)", timeout=20)
    assert end.reason == "disk" or "No space left" in end.reason


@walled
def test_what_a_program_leaves_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    deep = BY_C + "for _ in range(3000):\n    libc.mkdir(b'd', 0o700)\n    libc.chdir(b'd')"
    locked = "import os\nos.mkdir('locked', 0o300)\nopen('locked/f', 'w')\nos.symlink('/', 'root')"
    for program in (deep, locked):
        assert execute(program).passed
    assert list(tmp_path.iterdir()) == []


def told(value: str) -> Execution:
    """Whether a program that returns the value gives the tests exactly it."""
    tests = f"given = {value}\nvalue = f()\nassert type(value) is type(given) and repr(value) == repr(given)"
    return execute_tests(f"def f(): return {value}", tests)


def test_values_keep_their_type() -> None:
    plain = "[1, True, None, 'ü\\ud800', -2**70, 1.5, -0.0, 1e300, b'\\x00', bytearray(b'a'), 2j, (1, (2,)), [[]]]"
    tagged = "[float('nan'), float('inf'), complex('inf-nanj'), {3}, frozenset({4}), {(1, 2): [3], None: {}}, ()]"
    for value in (plain, tagged):
        assert told(value).passed, told(value).reason


def test_values_survive_the_form_they_travel_in() -> None:
    def none(reference: object) -> int:
        raise AssertionError(reference)

    for value in ({"int": "0x1"}, [0, -1, 2**53, -(2**64)], {(): {frozenset(): b"x"}}, [1e-320]):
        text = json.dumps(values.encode(value, none))
        assert values.decode(json.loads(text), none) == value
    for data in ({"eval": 1}, {"a": 1, "b": 2}, 1.5, {}, {"set": [[1]]}, {"int": "x"}):
        with pytest.raises((ValueError, TypeError)):
            values.decode(data, none)


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(): return (1, 2)", "assert f() == (1, 2) and f() != [1, 2]"),
        ("import numpy as np\ndef f(x): return np.float64(x)", "assert f(2) == 2 and type(f(2)) is float"),
        ("from collections import *\ndef f(): return Counter('aab')", "assert f() == {'a': 2, 'b': 1}"),
        ("def f(xs): xs.sort()", "xs = [3, 1]\nf(xs)\nassert xs == [1, 3]"),
        ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("class A:\n    n = 0\n    def add(self, k): self.n += k", "a = A()\na.add(k=3)\nassert a.n == 3"),
        (
            "def f(x): raise ValueError('below')",
            "try: f(-1)\nexcept ValueError as e: assert e.args == ('below',)\nelse: 1 / 0",
        ),
        ("def f(x): return len(x)\nx = 3", "assert f('a' * x) == x and math.isclose(f([1]), 1)"),
    ],
)  # fmt: skip
def test_tests_read_as_if_they_were_beside_the_program(program: str, tests: str) -> None:
    end = execute_tests(program, tests)
    assert end.passed, end.reason


@pytest.mark.parametrize(
    ("answer", "message"),
    [("assert f(1)", "completion} once"), ("{completion}{completion}", "once"),
     ("{completion}\nassert f(", "what follows"), ("x = (\n{completion}\n", "the text before")],
)  # fmt: skip
def test_templates_that_cannot_be_read_say_so(answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorer("code")("def f(x): return x", sample(answer))
