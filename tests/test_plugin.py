"""--plugin: a file of one's own is run once, its errors name file and line, worker processes run it too."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dopd_vlm import divergences, methods, plugins
from dopd_vlm.config import DataConfig, read_config
from dopd_vlm.data.annotations import registry as annotations
from dopd_vlm.scripts.main import main
from dopd_vlm.scripts.wiring.samples import training_samples

TYPE = """
from dopd_vlm.data.annotations import register

class Loud:
    def parse(self, raw, sizes):
        return str(raw or "")

    def describe(self, value, frame):
        return value.upper()

register("loud", Loud())
"""
METHOD = """
from dopd_vlm import methods

methods.register(methods.Method(name="mine", routes=methods.DOPD_ROUTES))
"""
ROW = {"uid": "a", "question": "which?", "answer": "b", "annotations": {"loud": "this one"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rows and a plug-in; what it registers is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(annotations, "TYPES", dict(annotations.TYPES))
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(divergences, "DIVERGENCES", dict(divergences.DIVERGENCES))
    (tmp_path / "loud_type.py").write_text(TYPE)
    (tmp_path / "own_method.py").write_text(METHOD)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    yield tmp_path
    plugins.forget()


@pytest.mark.parametrize(
    "command",
    [
        ["validate", "rows.jsonl", "--annotations", "loud"],
        ["preview", "rows.jsonl", "--annotations", "loud"],
        ["train", "demo_text", "data.train=rows.jsonl", "data.annotations=[loud]", "--dry-run"],
    ],
)
def test_a_type_is_known_with_its_file_alone(folder, command, capsys):
    assert main(command) == 2
    assert "'loud'" in "".join(capsys.readouterr())
    assert main([*command, "--plugin", "loud_type.py"]) == 0
    page = Path("preview.html").read_text() if command[0] == "preview" else capsys.readouterr().out
    assert "THIS ONE" in page or command[0] == "validate"


def test_a_method_is_known_and_files_add_up(folder, capsys):
    words = ["train", "demo_text", "data.limit=2", "method.name=mine", "--dry-run"]
    assert main(words) == 2
    assert main([*words, "--plugin", "own_method.py", "--plugin", "loud_type.py"]) == 0
    assert "with mine" in capsys.readouterr().out
    assert [path.name for path in plugins.files()] == ["own_method.py", "loud_type.py"]


def test_a_run_names_its_files_and_a_resume_runs_them(folder, capsys):
    words = [
        "train", "demo_text", "name=loud", "data.train=rows.jsonl", "data.annotations=[loud]", "evaluation.tasks=[]",
        "optim.batch_size=1", "optim.max_steps=1", "rollout.num_generations=1", "rollout.max_completion_length=2",
    ]  # fmt: skip
    assert main([*words, "--plugin", "loud_type.py"]) == 0
    saved = folder / "runs" / "loud" / "config.yaml"
    assert read_config(saved).plugins == [str(folder / "loud_type.py")]
    for command in ([*words, "resume=true"], ["validate", str(saved)], ["preview", str(saved)]):
        plugins.forget()
        annotations.TYPES.pop("loud")
        assert main(command) == 0, capsys.readouterr()
    assert read_config(saved).plugins == [str(folder / "loud_type.py")]
    plugins.forget()
    annotations.TYPES.pop("loud")
    (folder / "loud_type.py").unlink()
    assert main([*words, "resume=true"]) == 2
    assert "loud_type.py' is no Python file" in capsys.readouterr().out.replace("\n", "")


def test_a_worker_process_that_gets_the_samples_runs_the_file(folder):
    plugins.load_file("loud_type.py")
    samples = training_samples(DataConfig(train="rows.jsonl", annotations=["loud"]))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[0].privileged.context)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(samples), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == "loud:\nTHIS ONE"


def test_a_file_runs_once(folder):
    (folder / "counts.py").write_text("from pathlib import Path\nPath('runs').open('a').write('x')")
    plugins.load_file("counts.py")
    plugins.load_file(folder / "counts.py")
    assert (folder / "runs").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("absent.py", None, "'absent.py' is no Python file"),
        ("json.py", "", "a module 'json' is there already"),
        ("broken.py", "x = 1\nx.y\n", r"AttributeError: .*broken.py, line 2"),
        ("syntax.py", "def\n", "SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(folder, name, code, words, capsys):
    if code is not None:
        (folder / name).write_text(code)
    with pytest.raises(ValueError, match=words):
        plugins.load_file(name)
    assert main(["validate", "rows.jsonl", "--plugin", name]) == 2
    assert name in "".join(capsys.readouterr())
    assert not plugins.files()
