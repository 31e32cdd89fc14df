"""`dopd`: every script is a command, its help answers at once, names that are wrong are helped."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dopd_vlm.scripts.main import commands, main, overview
from dopd_vlm.scripts.wiring.command_line import RECIPES, is_recipe, recipe_path

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "datasets", "accelerate", "torchvision", "plotly", "matplotlib")
HELP = """
import contextlib, io, json, sys, time
from dopd_vlm.scripts.main import commands, main

result = {}
for name in commands():
    before, begin, text = set(sys.modules), time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            status = main([name, "--help"])
        except SystemExit as end:
            status = end.code
    result[name] = [status, text.getvalue(), sorted(set(sys.modules) - before), time.perf_counter() - begin]
print(json.dumps(result))
"""


def test_every_script_is_a_command_with_one_line_about_it():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"__init__", "main"}
    assert {name.replace("_", "-") for name in scripts} <= commands().keys()
    listing = overview().partition("commands:")[2]
    for name in commands():
        (line,) = [line for line in listing.splitlines() if line.split()[:1] == [name]]
        assert len(line.split()) > 3


@pytest.fixture(scope="module")
def helps():
    done = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_names_the_command(helps, name):
    status, text, *_ = helps[name]
    assert status == 0 and f"usage: dopd {name}" in text


def test_help_imports_nothing_heavy(helps):
    heavy = {name: set(modules) & set(HEAVY) for name, (_, _, modules, _) in helps.items()}
    assert not {name: modules for name, modules in heavy.items() if modules}


def test_help_is_quick(helps):
    """All of them in one process: processor time, that a busy machine does not stretch as much."""
    assert sum(seconds for *_, seconds in helps.values()) < 1.0 * len(helps)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "commands:"),
        (["trian"], "unknown command 'trian'; near: train;"),
        (["xyzzy"], "known: annotate, bench, "),
    ],
)
def test_no_command_or_an_unknown_one_ends_with_2(capsys, arguments, words):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_recipes_are_known_by_name(tmp_path):
    assert recipe_path("demo") == RECIPES / "demo.yaml"
    assert recipe_path("my.yaml") == Path("my.yaml")
    plain = tmp_path / "recipe"
    plain.write_text("")
    assert recipe_path(str(plain)) == plain
    with pytest.raises(ValueError, match=r"unknown recipe .* 'dmo'; near: demo"):
        recipe_path("dmo")


def test_an_unknown_recipe_ends_with_2(capsys):
    assert main(["train", "dmeo_text"]) == 2
    assert "'dmeo_text'; near: demo_text" in capsys.readouterr().out


def test_a_folder_is_no_recipe_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_recipe("demo") and is_recipe("own.yaml") and not is_recipe("rows")
    (tmp_path / "demo").mkdir()
    assert not is_recipe("demo")


def test_the_text_around_a_command_is_the_same_by_script():
    """`python scripts/X.py` works beside the package, with the library `evaluate` unhidden."""
    done = subprocess.run(
        [sys.executable, "scripts/evaluate.py", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("usage: dopd evaluate"), done.stderr


def test_every_main_takes_its_arguments():
    """None reads sys.argv itself, but where it is started as a program."""
    for path in (ROOT / "scripts").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                assert len(node.args.args) == 1 and not node.args.defaults, path
                assert "sys.argv" not in ast.unparse(node), path
