"""The wheel of a clean checkout works where the repository is not: rows, models and tasks are in it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import json
import dopd_vlm, dopd_vlm.data.rows, dopd_vlm.eval.harness
from dopd_vlm.config import ModelConfig
from dopd_vlm.data.annotations.registry import type_names
from dopd_vlm.data.embedded.sets import MODELS, embedded_model, embedded_rows
from dopd_vlm.data.views import make_sample
from dopd_vlm.eval.benchmarks.benchmark import benchmark_names, load_benchmark
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.models.policy import load_policy

rows = {name: embedded_rows(name) for name in ("embedded:shapes/test?num=2", "embedded:lists/shifted?num=2")}
samples = [make_sample(row, ["captions"]) for row in rows["embedded:shapes/test?num=2"]]
policies = {
    name: load_policy(ModelConfig(path=str(embedded_model(name))), device="cpu", trainable=False) for name in MODELS
}
results = evaluate(policies["student_vl"], "shapes", samples=samples)
print(json.dumps({
    "files": [module.__file__ for module in (dopd_vlm, dopd_vlm.data, dopd_vlm.eval, dopd_vlm.data.rows)],
    "rows": [len(found) for found in rows.values()],
    "n": results.n,
    "tasks": {name: load_benchmark(name).name for name in benchmark_names()},
    "types": type_names(),
}))
"""


def shell(*command: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The committed files alone: what a clone has, without anything that lies about here."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no clean clone to build from")
    folder = tmp_path_factory.mktemp("clone") / "repository"
    shell("git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    """The wheel, built with the setuptools at hand."""
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    shell(*pip, ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), cwd=checkout)
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_their_files_and_nothing_else(wheel, checkout):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dopd_vlm"}
    inside = {name for name in names if name.startswith("dopd_vlm/")}
    folders = ("dopd_vlm", "data", "eval", "scripts")
    committed = shell("git", "ls-files", *folders, cwd=checkout).stdout.split()
    expected = {
        name if name.startswith("dopd_vlm/") else f"dopd_vlm/{name}"
        for name in committed
        if (not name.endswith(".md") or "/assets/" in name)
        and (not name.startswith("scripts/") or name.endswith((".py", ".yaml")))
    }
    assert inside - {name for name in inside if name.endswith(".md")} == {
        name for name in expected if not name.endswith(".md")
    }
    assert "dopd_vlm/data/assets/photos/ATTRIBUTION.md" in inside
    assert not [name for name in names if Path(name).stem.startswith("test_")]
    assert not [name for name in names if name.startswith("tests/") or "runs/" in name]


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel installed without its dependencies, which are here already."""
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    shell(*pip, "--no-deps", "--target", str(target), str(wheel), cwd=target)
    return target


def outside(site: Path) -> dict[str, str]:
    """An environment in which the installed wheel comes before the repository."""
    return {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_dopd_trains_in_any_folder(site, tmp_path):
    overrides = ("optim.max_steps=2", "optim.batch_size=4", "evaluation.tasks=[]", "data.limit=8")
    program = str(site / "bin" / "dopd")
    done = shell(program, "train", "demo", *overrides, cwd=tmp_path, env=outside(site))
    assert "run folder: runs/demo" in done.stdout
    run = tmp_path / "runs" / "demo"
    assert (run / "checkpoint" / "model.safetensors").is_file() and (run / "report.html").is_file()
    assert str(site) in json.loads((run / "environment.json").read_text())["command"][0]
    page = tmp_path / "preview.html"
    shell(program, "preview", "demo", "--rows", "2", cwd=tmp_path, env=outside(site))
    assert "triangle" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_rows_models_and_tasks_load_outside_the_repository(site, tmp_path):
    target = site
    done = shell(sys.executable, "-c", PROGRAM, cwd=tmp_path, env=outside(site))
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(Path(file).is_relative_to(target) for file in found["files"]), found["files"]
    assert found["rows"] == [2, 2] and found["n"] == 2
    tasks = {path.stem for path in (ROOT / "eval" / "tasks").glob("*.yaml")}
    assert found["tasks"].keys() <= tasks and {"shapes", "lists"} <= found["tasks"].keys()
    assert {"boxes", "captions", "hints"} <= set(found["types"])
