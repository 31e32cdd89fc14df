"""`dopd COMMAND ...`: every command of the project under one name.

    dopd train demo              # a recipe by the name under which it ships, or by its path
    dopd COMMAND --help          # what a command takes

Each command is the `main(arguments)` of a file beside this one or in commands/, imported when it is
called: `dopd train` is `python scripts/train.py`.
"""

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from dopd_vlm.errors import unknown

HERE = Path(__file__).parent


def dopd() -> int:
    """The console script."""
    return main(sys.argv[1:])


def main(arguments: Sequence[str]) -> int:
    """The command's exit status; 2 without one or for an unknown one, whose near names are told."""
    known = commands()
    name = arguments[0] if arguments else ""
    if name in known:
        return import_module(f"dopd_vlm.scripts.{known[name]}").main(arguments[1:]) or 0
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if not name:
        print(overview(), file=sys.stderr)
    else:
        print(f"error: {unknown('command', name, known)}", file=sys.stderr)
    return 2


def commands() -> dict[str, str]:
    """{name on the command line: module below dopd_vlm.scripts}."""
    files = [path for path in sorted(HERE.glob("*.py")) if path.stem not in ("__init__", "main")]
    files += [path for path in sorted(HERE.glob("commands/*.py")) if path.stem != "__init__"]
    parts = [path.relative_to(HERE).with_suffix("").parts for path in files]
    return {names[-1].replace("_", "-"): ".".join(names) for names in parts}


def overview() -> str:
    """The text above, and a line for each command: the first of its file, which is not imported."""
    lines = [__doc__, "commands:"]
    for name, module in sorted(commands().items()):
        source = (HERE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        text = ast.get_docstring(ast.parse(source)) or ""
        lines.append(f"  {name:16} {text.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(dopd())
