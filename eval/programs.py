"""Answers that are judged by running code: function tests, input-output tests, verifiers.

All of it runs in the sandbox; a program that hangs or crashes costs its own answer.
"""

import base64
import json
import pickletools
import re
import zlib
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from dopd_vlm.types import Sample

from .answers import Score, code_of, final_answer, last_object, unread
from .sandbox import Execution, execute

MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
PRELUDE = "".join(
    [
        *(f"from {name} import *\n" for name in (*MODULES, "typing")),
        *(f"import {name}\n" for name in MODULES),
        "from builtins import *\n",
    ]
)
"""What LiveCodeBench puts in front of every program."""
CALLS = """

import json as _json
_space = globals()
for _given, _wanted in _json.loads({tests!r}):
    _target = getattr(_space["Solution"](), {name!r}) if "Solution" in _space else _space[{name!r}]
    _found = _target(*[_json.loads(_line) for _line in _given.split("\\n")])
    _found = list(_found) if isinstance(_found, tuple) else _found
    if _found != _json.loads(_wanted):
        raise AssertionError(f"{{_given[:80]!r}} gives {{str(_found)[:80]}}")
"""
VERIFY = """
import json, types
candidate = {candidate!r}
for number, source in enumerate(json.loads({sources!r}), start=1):
    space = {{}}
    exec(source, space)
    checks = [one for one in space.values() if isinstance(one, types.FunctionType)]
    if checks[-1](json.loads(candidate)) is not True:
        raise AssertionError(f"verifier {{number}}")
"""
STRING_OPCODES = {
    "PROTO", "FRAME", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
    "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP",
}  # fmt: skip
MOST_SECONDS = 60.0
"""Of all function tests of one problem together."""


def score_code(text: str, sample: Sample, *, timeout: float = 10.0) -> Score:
    """Whether the program passes its tests in the sandbox.

    The sample's answer is a template of the whole program with `{completion}` where the code
    goes. The code is the last fenced block, else the whole text.

    Raises:
        ValueError: the answer has no `{completion}`.
    """
    if "{completion}" not in sample.answer:
        raise ValueError(f"sample {sample.uid!r}: the answer must hold {{completion}}")
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    code = code_of(answer)
    if not code.strip():
        return unread()
    found = execute(sample.answer.replace("{completion}", code), timeout=timeout)
    return Score(correct=float(found.passed), extracted=code, rule=found.reason)


def score_tests(text: str, sample: Sample, *, timeout: float = 6.0) -> Score:
    """LiveCodeBench: every test passes, stopping at the first that does not.

    Programs that read stdin run once a test, `timeout` seconds each; function tests share one run.
    Output is compared line by line and token by token, numbers as decimals.
    """
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    if not answer.strip():
        return unread()
    code, gold = code_of(answer), json.loads(sample.answer)
    if gold["function"]:
        tests = json.dumps([[test["input"], test["output"]] for test in gold["tests"]])
        program = PRELUDE + code + CALLS.format(tests=tests, name=gold["function"])
        seconds = min(MOST_SECONDS, timeout * len(gold["tests"]))
        found = execute(program, timeout=seconds)
        return Score(correct=float(found.passed), extracted=code, rule=found.reason)
    for number, test in enumerate(gold["tests"], start=1):
        found = execute(PRELUDE + code, stdin=test["input"], timeout=timeout)
        reason = _output_fault(found, test["output"])
        if reason:
            return Score(correct=0.0, extracted=code, rule=f"test {number}: {reason}")
    return Score(correct=1.0, extracted=code, rule="passed")


def score_verifiers(text: str, sample: Sample, *, timeout: float = 10.0) -> Score:
    """AutoLogi: the last JSON object of the text satisfies every verifier program.

    A verifier is Python source; the last function it defines takes the object and returns True.
    """
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    found = last_object(answer)
    if found is None:
        return unread()
    candidate = json.dumps(found, ensure_ascii=False)
    sources = json.dumps(json.loads(sample.answer)["verifiers"])
    ended = execute(VERIFY.format(candidate=candidate, sources=sources), timeout=timeout)
    return Score(correct=float(ended.passed), extracted=candidate, rule=ended.reason)


def function_gold(raw: Sequence[Any]) -> str:
    """HumanEval's prompt, tests and entry point as one program around `{completion}`."""
    prompt, tests, entry_point = raw
    return f"{prompt}{{completion}}\n\n{tests}\n\ncheck({entry_point})\n"


def cases_gold(raw: Sequence[Any]) -> str:
    """LiveCodeBench's public tests, private tests and metadata as JSON.

    Raises:
        ValueError: no tests, or private tests in a form that is not read.
    """
    public, private, metadata = raw
    tests = [*_listed(public), *private_tests(private)]
    if not tests:
        raise ValueError("the problem has no tests")
    metadata = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata
    is_function = tests[0].get("testtype") == "functional"
    return json.dumps(
        {
            "function": (metadata or {}).get("func_name") if is_function else None,
            "tests": [{"input": t["input"], "output": t["output"]} for t in tests],
        }
    )


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


def verifiers_gold(raw: Any) -> str:
    """A list of verifier sources, or one source, as JSON.

    Raises:
        ValueError: none, or one that defines no function.
    """
    sources = [raw] if isinstance(raw, str) else list(raw or ())
    broken = [source for source in sources if not re.search(r"^def ", str(source), re.MULTILINE)]
    if broken or not sources:
        raise ValueError(f"verifiers must be Python sources with a function each, got {raw!r}")
    return json.dumps({"verifiers": sources})


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


def _output_fault(found: Execution, wanted: str) -> str:
    """Why the run does not count, empty where it does; leaving by sys.exit(0) is fine here."""
    if found.status != 0:
        return found.reason
    got, gold = (
        [line.split() for line in text.strip().splitlines()] for text in (found.stdout, wanted)
    )
    same = len(got) == len(gold) and all(map(_same_line, got, gold))
    return "" if same else f"prints {found.stdout.strip()[:80]!r}"


def _same_line(found: Sequence[str], gold: Sequence[str]) -> bool:
    return len(found) == len(gold) and all(map(_same_token, found, gold))


def _same_token(found: str, gold: str) -> bool:
    if found == gold:
        return True
    try:
        return Decimal(found) == Decimal(gold)
    except InvalidOperation:
        return False
