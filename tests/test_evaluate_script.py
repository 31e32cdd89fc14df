"""scripts/evaluate.py as a command: both views, files left behind, comparison, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import tiny

from dopd_vlm.eval.results import read_results

SCRIPT = Path(__file__).parents[1] / "scripts" / "evaluate.py"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True
    )


def test_evaluate_both_views_then_compare(tmp_path: Path) -> None:
    policy = tiny.vl_policy()
    policy.model.save_pretrained(tmp_path / "model")
    policy.processor.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    options = ["--view", "plain,privileged", "--limit", "3", "--max-completion-length", "4"]
    done = call(str(tmp_path / "model"), "--tasks", "shapes,lists", *options, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(one.name, one.view): one.n for one in read_results(out)}
    tasks = ("shapes", "lists")
    assert found == {(name, view): 3 for name in tasks for view in ("plain", "privileged")}
    assert len((out / "samples_lists__privileged.jsonl").read_text().splitlines()) == 3
    compared = call("--compare", str(out), str(out))
    assert compared.returncode == 0 and compared.stdout.count("shapes") == 2


def test_mistakes_end_with_a_message(tmp_path: Path) -> None:
    done = call("somewhere", "--tasks", "shaps")
    assert done.returncode == 2 and "near: shapes" in done.stdout
    assert "Traceback" not in done.stderr
