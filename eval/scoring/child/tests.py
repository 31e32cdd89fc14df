"""The tests' side: runs their source, and asks the program's process for the names they do not define.

The program never sees a wanted value: it gets arguments and returns data. What it says is read by
`values.decode`, so comparisons happen here and between builtin types.
"""

import ast
import builtins
import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from .values import decode, encode

REPLY_BYTES = 64 << 20
"""Longest reply that is read."""
PROGRAM_ENDED = 3
"""Status of tests whose program left: its own status says why."""
ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
}
"""What a program may raise here; SystemExit and its like, which would end the tests, are not among it."""


class ProgramError(Exception):
    """An exception of the program that is none of Python's own, or a reply that cannot be read."""


class EndedError(ProgramError):
    """The program's process is gone."""


def judge(source: str, requests: int, replies: int) -> None:
    """Runs the tests; leaves with status 1 and the reason on stderr when they do not hold."""
    try:
        tree = ast.parse(source, "tests.py")
        program = Program(requests, replies)
        names = Names(program, _modules(tree))
        exec(compile(tree, "tests.py", "exec"), names)
    except BaseException as error:  # the tests of a data set may raise anything
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        sys.stderr.write(reason.replace("\n", " ")[:500] + "\n")
        sys.stderr.flush()
        os._exit(PROGRAM_ENDED if isinstance(error, EndedError) else 1)


class Program:
    """The process of the program, by two pipes."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = os.fdopen(requests, "w"), os.fdopen(replies, "rb")
        self._read()

    def ask(self, **request: Any) -> Any:
        """The value that the program gives; raises what it raises."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise EndedError("the program ended") from None
        return self._read()

    def call(self, reference: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The value of a call; lists, sets and dicts among the arguments change in place with it."""
        given = [encode(list(arguments), _own), encode(keywords, _own)]
        reply = self.ask(call=[reference, *given])
        if isinstance(reply, _Changed):
            for own, changed in zip(arguments, reply.arguments, strict=True):
                _take_over(own, changed)
            return None
        return reply

    def _read(self) -> Any:
        line = self._replies.readline(REPLY_BYTES)
        if not line.endswith(b"\n"):
            raise ProgramError("the reply is too long") if line else EndedError("the program ended")
        reply = json.loads(line)
        if "error" in reply:
            kind, message = map(str, reply["error"])
            raise ERRORS[kind](message) if kind in ERRORS else ProgramError(f"{kind}: {message}")
        value = self._decode(reply["value"])
        return _Changed(self._decode(reply["arguments"])) if "arguments" in reply else value

    def _decode(self, data: Any) -> Any:
        return decode(data, lambda reference: Remote(self, reference))


class _Changed:
    def __init__(self, arguments: list[Any]) -> None:
        self.arguments = arguments


class Remote:
    """An object of the program: its functions, classes, instances and iterators.

    It is equal to itself alone and has no truth value: a program's own opinion on these counts nowhere.
    """

    def __init__(self, program: Program, reference: int) -> None:
        self._program, self._reference = program, reference

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._program.call(self._reference, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        return self._program.ask(attribute=[self._reference, name])

    def __iter__(self) -> Iterator[Any]:
        iterator = self._special("__iter__")
        try:
            while True:
                yield next(iterator)
        except StopIteration:
            return

    def __next__(self) -> Any:
        return self._special("__next__")

    def __len__(self) -> int:
        return self._special("__len__")

    def __getitem__(self, key: Any) -> Any:
        return self._special("__getitem__", key)

    def _special(self, name: str, *arguments: Any) -> Any:
        try:
            method = self.__getattr__(name)
        except AttributeError as error:  # what Python raises for an object without the method
            raise TypeError(str(error)) from None
        return method(*arguments)

    def __bool__(self) -> bool:
        raise TypeError("an object of the program has no truth value here")


class Names(dict[str, Any]):
    """The tests' globals: their own names, then the program's."""

    def __init__(self, program: Program, modules: dict[str, Any]) -> None:
        super().__init__(modules, __name__="tests", __builtins__=builtins)
        self._program = program

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return self._program.ask(name=name)


def _modules(tree: ast.Module) -> dict[str, Any]:
    """Standard modules that the tests use by name; a program that has one of its own lends it nobody."""
    owners = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return {name: importlib.import_module(name) for name in owners & sys.stdlib_module_names}


def _own(value: Any) -> int:
    if type(value) is not Remote:
        raise TypeError(
            f"the tests give the program {type(value).__name__}, which is no plain value"
        )
    return value._reference


def _take_over(own: Any, changed: Any) -> None:
    if type(own) is list and type(changed) is list:
        own[:] = changed
    elif (type(own) is set and type(changed) is set) or (
        type(own) is dict and type(changed) is dict
    ):
        own.clear()
        own.update(changed)
