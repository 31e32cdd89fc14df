"""A recipe's benchmarks in its run: the teacher answers with the run's own weights, the table has all."""

import json
from unittest.mock import patch

import pytest
import tiny
from rich.console import Console

from dopd_vlm.config import read_config
from dopd_vlm.rollout.own import OwnEngine
from dopd_vlm.scripts.wiring import evaluation
from dopd_vlm.scripts.wiring.command_line import recipe_path
from dopd_vlm.scripts.wiring.evaluation import Evaluation, last_evaluation

SMALL = ["evaluation.tasks=[lists]", "evaluation.views=[plain]", "evaluation.limit=4"]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """An evaluation of few questions; models are not loaded but counted."""
    loads = []

    def load(model, **options):
        loads.append(model.path)
        return tiny.text_policy(2)

    monkeypatch.setattr(evaluation, "load_policy", load)
    every = evaluation.benchmark_samples

    def few(*given):
        samples, problems = every(*given)
        return samples[:6], problems

    monkeypatch.setattr(evaluation, "benchmark_samples", few)
    config = read_config(recipe_path("demo_text"), [*SMALL, f"output_dir={tmp_path}"])
    return Evaluation(config, Console()), loads


def test_the_teacher_of_the_run_answers_and_none_is_loaded(measure):
    evaluate, loads = measure
    metrics = evaluate(tiny.text_policy(0), 0, False, teacher=tiny.text_policy(1))
    assert metrics["teacher/lists/plain/n"] == 6 and not loads


def test_a_run_without_a_teacher_loads_one_for_the_table_once(measure):
    evaluate, loads = measure
    assert "teacher/lists/plain/n" in evaluate(tiny.text_policy(0), 0, False, teacher=None)
    metrics = evaluate(tiny.text_policy(0), 2, False, teacher=None)
    assert metrics["eval/lists/plain/n"] == 4 and "teacher/lists/plain/n" not in metrics
    assert loads == ["embedded:teacher_text"]
    step, results = last_evaluation(evaluation.run_folder(evaluate.config))
    assert (step, [(r.name, r.view, r.n) for r in results]) == (2, [("lists", "plain", 4)])


def test_an_own_task_by_path_has_its_numbers_in_the_table(tmp_path, capsys) -> None:
    rows = [
        {"uid": "a", "question": "count 3 4", "answer": "7", "answer_type": "number"},
        {"uid": "b", "question": "count 3 4", "answer": "none", "answer_type": "number"},
        {"uid": "c", "question": "count 3 4", "answer": "7", "choices": 5},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = tmp_path / "own.yaml"
    own.write_text(f"description: d\nrows: {tmp_path / 'own.jsonl'}\nanswer_type: row\n")
    overrides = [f"evaluation.tasks=[{own}]", "evaluation.views=[plain]", f"output_dir={tmp_path}"]
    config = read_config(recipe_path("demo_text"), overrides)
    evaluate = Evaluation(config, Console(width=200))
    told = capsys.readouterr().out
    assert evaluate.left_out == {"own": 2}
    assert "2 rows are left out" in told and "own.jsonl line 2" in told and "line 3" in told
    teacher = tiny.text_policy(1)
    student = tiny.text_policy(0)
    with patch.object(
        OwnEngine, "generate", autospec=True, side_effect=OwnEngine.generate
    ) as drawn:
        engine = OwnEngine(student)
        metrics = evaluate(student, 0, False, teacher=teacher, engine=engine)
    assert [call.args[0] is engine for call in drawn.call_args_list] == [True, False], (
        "the student's answers come from the run's engine, the teacher's from one of its own"
    )
    assert metrics["eval/own/plain/n"] == 1
    cells = [list(column.cells) for column in evaluate.table().columns]
    assert cells[0] == ["own"] and cells[2] != ["-"] and cells[5] != ["-"]
