"""scripts/evaluate.py as a command: both views, files left behind, comparison, mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from test_endpoint import chat, server
from test_lm_eval import text_task

from dopd_vlm.eval.results.results import read_results
from dopd_vlm.jsonl import read_lines, write_lines
from dopd_vlm.scripts import evaluate as evaluate_script
from dopd_vlm.scripts.wiring import evaluate_tasks

SCRIPT = Path(__file__).parents[1] / "scripts" / "evaluate.py"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True
    )


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit status, what was printed) of the script in this process."""
    status = evaluate_script.main(list(arguments))
    return status, " ".join(capsys.readouterr().out.split())


def test_evaluate_both_views_then_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('"uid":') == 12 and "data:image/png;base64" in page
    assert (out / "report.md").read_text(encoding="utf-8").startswith("| task | metric | plain |")
    status, printed = run_here(
        capsys, "--compare", str(out), str(out), "--out", str(tmp_path / "compared")
    )
    assert status == 0 and printed.count("shapes") == 2
    assert '"uid":' not in (tmp_path / "compared" / "comparison.html").read_text(encoding="utf-8")
    other = tmp_path / "other"
    shutil.copytree(out, other)
    file = other / "samples_shapes__plain.jsonl"
    write_lines(file, [{**line, "accuracy": 1 - line["accuracy"]} for line in read_lines(file)])
    status, printed = run_here(
        capsys, "--compare", str(out), str(other), "--out", str(tmp_path / "changed")
    )
    assert status == 0, printed
    page = (tmp_path / "changed" / "comparison.html").read_text(encoding="utf-8")
    assert page.count(' is better","prompt"') == 3 and "data:image/png;base64" in page


def test_mistakes_end_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["somewhere", "--tasks", "shaps"], "near: shapes"),
        (["somewhere", "--suite", "paper"], "known: paper_vlm, paper_llm"),
        (["./nowhere", "--tasks", "shapes"], "model folder './nowhere' does not exist"),
        (["embedded:student_vl"], "--tasks NAME"),
        (["a", "--endpoint", "http://127.0.0.1:9/v1", "--tasks", "shapes"], "either a CHECKPOINT"),
        (["--endpoint", "http://127.0.0.1:9/v1", "--tasks", "shapes"], "is the server running"),
        (["--endpoint", "ftp://x", "--tasks", "shapes"], "must start with http"),
        (
            ["--endpoint", "http://x/v1", "--harness", "lm-eval", "--tasks", "a"],
            "local-chat-completions",
        ),
    ):
        status, printed = run_here(capsys, *arguments)
        assert status == 2 and message in printed, (arguments, printed)


def test_a_task_without_data_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--limit", "2", "--max-completion-length", "3", "--out", str(tmp_path)]
    task = tmp_path / "absent.yaml"
    task.write_text("description: d\nrows: ./absent_rows.jsonl\n")
    status, printed = run_here(
        capsys, "embedded:student_vl", "--tasks", f"{task},shapes", "--show-prompts", "1", *options
    )
    assert status == 2 and "absent_rows.jsonl" in printed
    assert "image 1: 32 x 32" in printed and "<|im_start|>user" in printed
    assert [one.name for one in read_results(tmp_path)] == ["shapes"]


def test_rows_of_several_tasks_and_a_task_that_fails_on_its_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate_tasks.evaluate_one

    def fails_once(model, task, *rest):
        if task.name == "amc23":
            raise ValueError("one prompt alone does not fit")
        return real(model, task, *rest)

    monkeypatch.setattr(evaluate_tasks, "evaluate_one", fails_once)
    rows = SCRIPT.parents[1] / "tests" / "fixtures" / "tasks" / "{task}.jsonl"
    status, printed = run_here(
        capsys, "embedded:student_text", "--tasks", "amc23,gsm8k,shapes,math500", "--rows", str(rows),
        "--max-completion-length", "3", "--out", str(tmp_path),
    )  # fmt: skip
    assert status == 2 and "2 of 4 tasks did not run to their end" in printed
    assert "task 'amc23': one prompt alone" in printed and "shapes.jsonl" in printed
    assert [one.name for one in read_results(tmp_path)] == ["gsm8k", "math500"]


def test_an_endpoint_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(body: dict, tries: int) -> tuple[int, object]:
        content = body["messages"][-1]["content"]
        return 200, chat("answer 2" if "image_url" in str(content) else "answer 15")

    with server(script) as (url, bodies):
        status, printed = run_here(
            capsys, "--endpoint", url + "/", "--tasks", "shapes,lists", "--limit", "5",
            "--show-prompts", "1", "--out", str(tmp_path),
        )  # fmt: skip
    assert status == 0 and {body["model"] for body in bodies} == {"small"}
    found = read_results(tmp_path)
    assert [one.model for one in found] == [f"small @ {url}"] * 2
    assert [one.n for one in found] == [5, 5] and found[0].accuracy > 0
    assert "'type': 'image'" not in printed or "image 1" in printed


def test_lm_eval_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": f"what is {i}?", "answer": str(i)} for i in range(3)]
    arguments = ["embedded:student_text", "--harness", "lm-eval", "--tasks", "local_lists"]
    arguments += ["--include-path", str(text_task(tmp_path, rows)), "--limit", "2"]
    status, printed = run_here(
        capsys, *arguments, "--max-completion-length", "4", "--out", str(tmp_path / "out")
    )
    assert status == 0 and "|local_lists|" in printed and "exact_match" in printed
    (path,) = (tmp_path / "out").rglob("results_*.json")
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["n-samples"]["local_lists"]["effective"] == 2
    monkeypatch.setitem(sys.modules, "dopd_vlm.eval.bridges.lm_eval_run", None)
    status, printed = run_here(capsys, *arguments)
    assert status == 2
