"""Answers that are judged by running code: function tests and input-output tests.

All of it runs in the sandbox; a program that hangs or crashes costs its own answer. No program sees
what is wanted of it: tests run in a process of their own.
"""

import ast
import base64
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from dopd_vlm.types import Sample

from .answers import Score, code_of, final_answer, unread
from .sandbox import Execution, execute_each, execute_tests

MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
PRELUDE = "".join(
    [
        *(f"from {name} import *\n" for name in (*MODULES, "typing")),
        *(f"import {name}\n" for name in MODULES),
        "from builtins import *\n",
        "sys.setrecursionlimit(50000)\n",
    ]
)
"""What LiveCodeBench puts in front of every program."""
CALLS = """
def _judge(tests, seconds):
    import json, signal
    for given, wanted in json.loads(tests):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        value = _target()(*[json.loads(line) for line in given.split("\\n")])
        value = list(value) if type(value) is tuple else value
        if value != json.loads(wanted):
            raise AssertionError(f"{{given[:80]!r}} gives {{str(value)[:80]}}")

def _target():
    try:
        solution = Solution
    except NameError:
        return {name}
    return solution().{name}

_judge({tests!r}, {seconds})
"""
"""LiveCodeBench's function tests; like its program, an outer tuple counts as a list."""
STRING_OPCODES = {
    "PROTO", "FRAME", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
    "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP",
}  # fmt: skip
MOST_SECONDS = 60.0
"""Of all function tests of one problem together."""
MEMORY_BYTES = 4 << 30
"""Of a program on one test; the contests' own limits are meant for other languages."""


def score_code(text: str, sample: Sample, *, timeout: float = 10.0) -> Score:
    """Whether the program passes its tests in the sandbox.

    The sample's answer is a template of the whole program with `{completion}` where the code
    goes: what follows is the tests, which run apart from it. What comes before is the program's
    beginning, and its whole statements are also the tests' own, so that a function given there is
    not the model's to change. The code is the last fenced block, else the whole text.

    Raises:
        ValueError: the answer has not one `{completion}`, or a part of it is no Python.
    """
    beginning, tests = _template(sample)
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    code = code_of(answer)
    if not code.strip():
        return unread()
    end = execute_tests(beginning + code, _givens(beginning, sample.uid) + tests, timeout=timeout)
    return Score(correct=float(end.passed), extracted=code, rule=end.reason)


def _template(sample: Sample) -> tuple[str, str]:
    beginning, *rest = sample.answer.split("{completion}")
    if len(rest) != 1:
        raise ValueError(f"sample {sample.uid!r}: the answer must hold {{completion}} once")
    try:
        ast.parse(rest[0])
    except SyntaxError as error:
        raise ValueError(f"sample {sample.uid!r}: what follows {{completion}}: {error}") from error
    return beginning, rest[0]


def _givens(beginning: str, uid: str) -> str:
    """The beginning's whole statements; a last function or class is what the completion goes on with."""
    last = beginning.rstrip().rpartition("\n")[2]
    open_block = f"{beginning.rstrip()}\n{' ' * (len(last) - len(last.lstrip()) + 4)}pass\n"
    for form in (beginning, open_block):
        try:
            statements = ast.parse(form).body
        except SyntaxError:
            continue
        is_open = bool(statements) and isinstance(
            statements[-1], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        )
        whole = statements[:-1] if is_open else statements
        return ast.unparse(ast.Module(body=whole, type_ignores=[])) + "\n"
    raise ValueError(f"sample {uid!r}: the text before {{completion}} is no Python: {beginning!r}")


def score_tests(text: str, sample: Sample, *, timeout: float = 6.0) -> Score:
    """LiveCodeBench: every test passes, `timeout` seconds each, stopping at the first that does not.

    Programs that read stdin run once a test, on all cores; function tests share one run. Output is
    compared line by line, outer spaces aside, and lines of numbers as decimals.
    """
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    if not answer.strip():
        return unread()
    code, gold = code_of(answer), json.loads(sample.answer)
    start = gold.get("start", "")
    if start and not code.startswith(start):
        code = f"{start}\n{code}"
    judge = _function_fault if gold["function"] else _program_fault
    fault = judge(code, gold, timeout)
    return Score(correct=float(not fault), extracted=code, rule=fault or "passed")


def _function_fault(code: str, gold: Mapping[str, Any], timeout: float) -> str:
    tests = json.dumps([[test["input"], test["output"]] for test in gold["tests"]])
    calls = CALLS.format(tests=tests, name=gold["function"], seconds=timeout)
    most = min(MOST_SECONDS, timeout * len(gold["tests"]))
    end = execute_tests(PRELUDE + code, calls, timeout=most, memory=MEMORY_BYTES)
    return "" if end.passed else end.reason


def _program_fault(code: str, gold: Mapping[str, Any], timeout: float) -> str:
    inputs, wanted = ([test[key] for test in gold["tests"]] for key in ("input", "output"))
    runs = execute_each(PRELUDE + code, inputs, timeout=timeout, memory=MEMORY_BYTES)
    for number, (end, output) in enumerate(zip(runs, wanted, strict=True), start=1):
        reason = _output_fault(end, output)
        if reason:
            return f"test {number}: {reason}"
    return ""


def function_gold(raw: Sequence[Any]) -> str:
    """HumanEval's prompt, tests and entry point as one program around `{completion}`."""
    prompt, tests, entry_point = raw
    return f"{prompt}{{completion}}\n\n{tests}\n\ncheck({entry_point})\n"


def cases_gold(raw: Sequence[Any], start: str = "") -> str:
    """LiveCodeBench's public tests, private tests and metadata as JSON.

    `start` is what a program begins with where the question gives a part of the solution.

    Raises:
        ValueError: no tests, or private tests in a form that is not read.
    """
    public, private, metadata = raw
    tests = [*_listed(public), *private_tests(private)]
    if not tests:
        raise ValueError("the problem has no tests")
    metadata = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata
    gold = {
        "function": (metadata or {}).get("func_name"),
        "tests": [{"input": test["input"], "output": test["output"]} for test in tests],
    }
    return json.dumps(gold | ({"start": start} if start else {}))


def private_tests(raw: Any) -> list[dict[str, Any]]:
    """The tests of `private_test_cases`: JSON, or base64 of zlib of a pickled JSON string.

    Nothing is ever unpickled, since a pickle may run code: the opcodes are listed, and only a
    pickle that consists of one string is read.

    Raises:
        ValueError: the pickle holds anything else, or the text is neither form.
    """
    if not isinstance(raw, str) or not raw.strip() or raw.lstrip().startswith("["):
        return _listed(raw)
    try:
        packed = zlib.decompress(base64.b64decode(raw, validate=True))
        steps = list(pickletools.genops(packed))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"private tests are neither JSON nor a packed string: {error}") from error
    strings = [argument for _, argument, _ in steps if isinstance(argument, str)]
    others = sorted({code.name for code, _, _ in steps} - STRING_OPCODES)
    if others or len(strings) != 1:
        raise ValueError(
            f"private tests hold a pickle that is not one string (it has {', '.join(others)}); "
            "it is not opened, since it could run code: give the tests as JSON"
        )
    return json.loads(strings[0])


def program_question(raw: Sequence[Any]) -> str:
    """LiveCodeBench's question with what the program must look like."""
    content, starter = raw
    if starter:
        form = (
            "Use this starter code and put the whole solution into one ```python block.\n"
            f"```python\n{starter}\n```"
        )
    else:
        form = (
            "Read the inputs from stdin, solve the problem and write the answer to stdout. Put the "
            "whole program into one ```python block."
        )
    return f"{content}\n\n{form}"


def _listed(raw: Any) -> list[dict[str, Any]]:
    if isinstance(raw, str):
        raw = json.loads(raw) if raw.strip() else []
    return [dict(test) for test in raw or ()]


def _output_fault(end: Execution, wanted: str) -> str:
    """Why the run does not count, empty where it does; leaving by sys.exit(0) is fine here."""
    if not end.passed:
        return end.reason
    got, gold = (
        [line.strip() for line in text.strip().split("\n")] for text in (end.stdout, wanted)
    )
    same = len(got) == len(gold) and all(map(_same_line, got, gold))
    return "" if same else f"prints {end.stdout.strip()[:80]!r}"


def _same_line(printed: str, gold: str) -> bool:
    """The same text, or numbers all of it and equal as decimals."""
    if printed == gold:
        return True
    try:
        return [Decimal(one) for one in printed.split()] == [Decimal(one) for one in gold.split()]
    except InvalidOperation:
        return False
