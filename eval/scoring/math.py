"""Whether a completion's mathematical answer equals the gold one, by math-verify in a worker.

The worker is a process of its own: math-verify can hang, and a hang costs that answer only.
"""

import atexit
import functools
import importlib.util
import json
import re
import selectors
import subprocess
import sys
from typing import Any

from dopd_vlm.types import Sample

from .answers import Score, final_answer, unread
from .markup import declared_values, mark_declared
from .quantity import read_quantity

START_SECONDS = 120.0
"""The worker imports sympy first, which takes long on a busy machine."""
DEFAULT_COMMAND = (sys.executable, "-m", "dopd_vlm.eval.scoring.math_worker")


class MathWorker:
    """One child process, started when first needed and again after it was killed."""

    def __init__(self, timeout: float = 15.0, command: tuple[str, ...] = DEFAULT_COMMAND) -> None:
        self._timeout, self._command = timeout, command
        self._process: subprocess.Popen[str] | None = None

    def compare(self, completion: str, gold: str) -> dict[str, Any]:
        """`correct` and `extracted`, or `failure`: timeout, crash or error with its message."""
        try:
            process = self._started()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"completion": completion, "gold": gold}) + "\n")
            process.stdin.flush()
            line = self._line(process, self._timeout)
        except (TimeoutError, BrokenPipeError) as error:
            self.close()
            return {"failure": "timeout" if isinstance(error, TimeoutError) else "crash"}
        if not line:
            self.close()
            return {"failure": "crash"}
        answer = json.loads(line)
        return {"failure": f"error: {answer['error']}"} if "error" in answer else answer

    def close(self) -> None:
        """Kill the child; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            if not self._line(self._process, START_SECONDS):
                raise BrokenPipeError("the worker ended before it was ready")
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[str], timeout: float) -> str:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise TimeoutError
        return process.stdout.readline()


@functools.cache
def shared_worker() -> MathWorker:
    """The process-wide worker.

    Raises:
        ValueError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            "answer_type 'math' needs math-verify, which is not installed: "
            "pip install 'dopd-vlm[eval]'"
        )
    worker = MathWorker()
    atexit.register(worker.close)
    return worker


def score_math(text: str, sample: Sample, *, worker: MathWorker | None = None) -> Score:
    """math-verify's judgement (gold first; it is not symmetric), made in a process with a timeout.

    A timeout or crash is unparsed with that rule, never a plain wrong answer.
    """
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    if not answer.strip():
        return unread()
    if answer.strip() == sample.answer.strip():
        return Score(correct=1.0, extracted=answer.strip(), rule="exact")
    verdict = (worker or shared_worker()).compare(_formula(answer), sample.answer)
    if "failure" in verdict:
        return unread(verdict["failure"])
    rule = "math_verify" if verdict["extracted"] is not None else "unparsed"
    return Score(correct=float(verdict["correct"]), extracted=verdict["extracted"], rule=rule)


def _formula(text: str) -> str:
    """What math-verify is to read: the last box, else what is declared, else a last formula.

    Left to itself it takes the last formula of a prose text, whatever that says: "there are 4 values
    with $f(x) = 3$" would be 3, and "16 $\\pi$" only pi.
    """
    if "\\boxed" in text:
        return text
    values = declared_values(mark_declared(text))
    if values:
        return f"\\boxed{{{values[-1]}}}"
    declared = re.findall(r"\banswer\b[^:\n.]{0,60}?(?:\sis\b|:|=)\s*([^\n]+)", text, re.IGNORECASE)
    sentence = declared[-1] if declared else re.split(r"(?<=[^\d][.!?])\s+|\n", text.strip())[-1]
    sentence = sentence.strip().rstrip(".")
    if "$" not in sentence and read_quantity(sentence):
        return sentence  # with its unit, and sqrt(2) without LaTeX
    if not re.search(
        r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|so|it|is|we|to|of|or|by|an|in|at|no)(?![A-Za-z])", sentence
    ):
        return f"${sentence.replace('$', '')}$"
    tail = re.search(
        r"(?:\b(?:is|are|equals|get|have|be)\b|[:=])\s*(\$[^$]+\$|\\\(.+?\\\)|[^\s$]+)$", sentence
    )
    return tail[1] if tail else sentence if declared else ""
