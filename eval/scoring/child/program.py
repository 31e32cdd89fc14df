"""The program's side: runs it, then answers what its tests ask, one JSON line for one.

Requests: {"name": n}, {"attribute": [reference, n]}, {"call": [reference, arguments, keywords]}.
Replies: {"value": v}, with the arguments after a call that returned None, which may have changed
them in place; {"error": [type, message]}.
"""

import json
import os
import sys
import types
from typing import Any

from .values import decode, encode

MESSAGE_LETTERS = 500


def serve(source: str) -> None:
    """Runs the program and answers until the requests end."""
    requests, replies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    sink = os.open(os.devnull, os.O_RDWR)
    os.dup2(sink, 0)
    os.dup2(sink, 1)
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    owner = _Owner(module.__dict__)
    reply: dict[str, Any] = {"value": None}
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
    except BaseException as error:  # a program may raise anything, SystemExit among it
        reply = _error(error)
    _send(replies, reply)
    for line in requests:
        _send(replies, owner.answer(json.loads(line)))


class _Owner:
    """The program's names and the objects that its tests know by reference."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._objects: list[Any] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._answer(request)
        except BaseException as error:  # goes to the tests, which decide what it means
            return _error(error)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "name" in request:
            name = request["name"]
            if name not in self._names:
                raise NameError(f"name {name!r} is not defined")
            return {"value": encode(self._names[name], self._refer)}
        if "attribute" in request:
            reference, name = request["attribute"]
            return {"value": encode(getattr(self._objects[reference], name), self._refer)}
        reference, *given = request["call"]
        arguments, keywords = (decode(one, self._objects.__getitem__) for one in given)
        value = self._objects[reference](*arguments, **keywords)
        changed = {"arguments": encode(arguments, self._refer)} if value is None else {}
        return {"value": encode(value, self._refer), **changed}

    def _refer(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1


def _error(error: BaseException) -> dict[str, Any]:
    try:
        message = str(error)[:MESSAGE_LETTERS]
    except Exception:  # the program's own __str__
        message = ""
    return {"error": [type(error).__name__, message]}


def _send(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
