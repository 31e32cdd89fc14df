"""README: its blocks run as they stand, its commands exist, its tree is the folders."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from pages import blocks_of, run_command, run_python, write_named
from PIL import Image

from dopd_vlm import plugins
from dopd_vlm.data.annotations import registry as annotations
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_sample
from dopd_vlm.eval.results.results import read_results
from dopd_vlm.scripts.main import commands, main
from dopd_vlm.scripts.wiring.command_line import recipe_names

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ARROW = {"from": [10, 20], "to": [90, 80]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the image of the README's row; what it registers is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(annotations, "TYPES", dict(annotations.TYPES))
    (tmp_path / "my_rows").mkdir()
    Image.new("RGB", (320, 240), "grey").save(tmp_path / "my_rows" / "kitchen.png")
    yield tmp_path
    plugins.forget()


def rows_with_arrows(row: dict, *arrows: dict) -> None:
    """The folder my_arrows: the README's row, annotated by arrows."""
    folder = Path("my_arrows")
    folder.mkdir()
    Image.new("RGB", (100, 100)).save(folder / "kitchen.png")
    row = {**row, "annotations": {"arrows": arrows}}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")


def test_every_block_runs_from_top_to_bottom(folder, capsys):
    row = {}
    for kind, code, _ in blocks_of(README):
        if kind == "json":
            Path("my_rows/metadata.jsonl").write_text(code)
            (row,) = map(json.loads, code.splitlines())
            rows_with_arrows(row, ARROW)
        elif kind in ("yaml", "python"):
            write_named(code)
        elif kind == "sh":
            for line in code.splitlines():
                run_command(line)
        else:
            assert kind == "mermaid"
    (plain, privileged) = read_results(Path("results"))
    assert (plain.name, plain.n, privileged.view) == ("cups", 1, "privileged")
    assert "2 cup" not in Path("preview.html").read_text(encoding="utf-8")


def test_the_annotation_type_checks_its_input_and_speaks_the_family_s_coordinates(folder):
    (code,) = [code for kind, code, _ in blocks_of(README) if kind == "python"]
    run_python("README.md", code, {})
    row = {"uid": "a", "images": ["kitchen.png"], "question": "where?", "answer": "there"}
    rows_with_arrows(row, ARROW)
    sample = make_sample(read_rows("my_arrows")[0], ["arrows"])
    assert '{"from_2d": [100, 200], "to_2d": [900, 800]}' in sample.privileged.context
    for wrong in ({"from": [1, 2]}, {**ARROW, "to": [200, 0]}, {**ARROW, "image": 3}, "no arrow"):
        with pytest.raises(ValueError, match="arrows"):
            make_sample(
                {**read_rows("my_arrows")[0], "annotations": {"arrows": [wrong]}}, ["arrows"]
            )


def command_lines() -> list[str]:
    """Every line of README, and of its blocks, that calls `dopd`."""
    text = README.read_text(encoding="utf-8")
    lines = re.findall(r"(?m)^(?:    )?(dopd .*)$", text)
    return [*lines, *re.findall(r"`(dopd [^`]+)`", text)]


@pytest.mark.parametrize("line", command_lines())
def test_commands_exist_with_the_options_that_are_named(line, capsys):
    _, command, *words = shlex.split(line, comments=True)
    if command in ("COMMAND", "--help"):
        return
    assert command in commands()
    with pytest.raises(SystemExit) if command != "train" else pytest.raises(ZeroDivisionError):
        sys.exit(main([command, "--help"])) if command != "train" else 1 / main([command, "--help"])
    told = capsys.readouterr().out
    for option in [word.strip("[]").partition("=")[0] for word in words]:
        assert not option.startswith("--") or option in told, f"{line}: {option}"
    if command == "train" and words and words[0].islower() and words[0].isidentifier():
        assert words[0] in recipe_names()


def test_the_table_of_recipes_is_the_recipes():
    table = (
        README.read_text(encoding="utf-8").partition("| Recipe | What |")[2].partition("\n\n")[0]
    )
    named = re.findall(r"`([\w.]+)`", "".join(re.findall(r"(?m)^\|([^|]*)\|", table)))
    assert sorted(named) == recipe_names()


def test_the_tree_names_every_folder():
    tree = (
        README.read_text(encoding="utf-8").partition("## Where things are")[2].partition("## ")[0]
    )
    named = set(re.findall(r"(\w+)/", tree))
    for top in ("dopd_vlm", "data", "eval", "scripts"):
        folders = {path.parent.name for path in (ROOT / top).rglob("__init__.py")}
        assert folders <= named, folders - named
