"""Documentation pages as programs: their blocks run from top to bottom, and print what they show."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

from dopd_vlm.data.annotations import registry as annotations
from dopd_vlm.scripts.main import main

BLOCK = re.compile(r"```(\w+)\n(.*?)```\n((?:\n(?:    [^\n]*\n)+)?)", re.DOTALL)
NAMED = re.compile(r"# ([\w.]+\.(?:py|yaml|jsonl))\n")
"""First line of a block that is a file."""


def blocks_of(page: Path) -> list[tuple[str, str, str]]:
    """(language, code, indented text right behind it) of each block of the page, in order."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(kind, code, re.sub("(?m)^    ", "", shown).strip()) for kind, code, shown in blocks]


def run_page(page: Path, folder: Path, capsys) -> None:
    """All blocks in order, in the current folder; what a block prints stands behind it on the page."""
    names: dict = {}
    for kind, code, shown in blocks_of(page):
        capsys.readouterr()
        if kind == "python":
            run_python(page.name, code, names)
            if "print(" in code:
                assert capsys.readouterr().out.strip() == shown
        elif kind == "toml":
            (folder / "pyproject.toml").write_text(code)
        elif kind == "yaml":
            write_named(code)
        else:
            assert kind == "sh", kind
            for line in code.strip().replace("\\\n", " ").splitlines():
                run_command(line)


def write_named(code: str) -> None:
    """The file that the first line of a block names."""
    named = NAMED.match(code)
    assert named, code
    Path(named[1]).write_text(code.split("\n", 1)[1], encoding="utf-8")


def run_python(page: str, code: str, names: dict) -> None:
    """Executes a block; one that begins with `# NAME.py` is that file."""
    if NAMED.match(code):
        write_named(code)
    exec(compile(code, page, "exec"), names)


def run_command(line: str) -> None:
    """`dopd ...` in this process; `pip install .` as the metadata that it would leave."""
    command = shlex.split(line, comments=True)
    if command[:2] == ["pip", "install"]:
        install_metadata(Path("pyproject.toml"))
        return
    assert command[0] == "dopd", line
    assert main(command[1:]) == 0, line


def install_metadata(pyproject: Path) -> None:
    """What the package's installation adds: a folder that names its entry points."""
    project = tomllib.loads(pyproject.read_text())["project"]
    folder = Path(f"{project['name']}-{project['version']}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    importlib.invalidate_caches()
    annotations._plugins.cache_clear()
