"""Entry of a sandboxed process: `main.py ROLE MEMORY CPU_SECONDS FILE_BYTES [DESCRIPTORS]`.

Roles: `script` runs ../program.py on the stdin it was given; `functions` runs it and then answers
calls, which come by stdin and leave by stdout; `tests` reads the tests' source from stdin and asks
such a process by the two given descriptors. Every role gives up its rights first.
"""

import os
import sys
import types
from pathlib import Path

from .limits import restrict
from .program import serve
from .tests import judge


def main() -> None:
    """Leaves with status 0 when the program, or its tests, ran to the end."""
    role, *numbers = sys.argv[1:]
    memory, seconds, file_size, *descriptors = map(int, numbers)
    source = sys.stdin.read() if role == "tests" else _program()
    restrict(memory, seconds, file_size)
    sys.argv = ["program.py"]
    if role == "tests":
        judge(source, *descriptors)
    elif role == "functions":
        serve(source)
    else:
        # Classes and pickles of the program look for their module under this name.
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(source, "program.py", "exec"), module.__dict__)
    for stream in {sys.stdout, sys.__stdout__}:
        if stream is not None:
            stream.flush()
    os._exit(0)


def _program() -> str:
    return Path("../program.py").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
