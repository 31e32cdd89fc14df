"""Task files: all of them load, and mistakes are named."""

from pathlib import Path

import pytest

from dopd_vlm.eval.benchmarks.benchmark import SUITES, benchmark_names, load_benchmark
from dopd_vlm.types import Sampling


@pytest.mark.parametrize("name", benchmark_names())
def test_every_task_loads(name: str) -> None:
    task = load_benchmark(name)
    assert task.name == name and task.description and task.rows


def test_embedded_tasks_name_shipped_rows() -> None:
    assert {
        name: load_benchmark(name).rows
        for name in ("shapes", "shapes_shifted", "lists", "lists_shifted")
    } == {
        "shapes": "embedded:shapes/test",
        "shapes_shifted": "embedded:shapes/shifted",
        "lists": "embedded:lists/test",
        "lists_shifted": "embedded:lists/shifted",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("answr_type: text", "'answr_type'; near: answer_type"),
        ("answer_type: numbr", "near: number"),
        ("generation: {temperatur: 1}", "generation: 'temperatur'; near: temperature"),
        ("generation: {temperature: -1}", "must not be negative"),
        ("prompts: {question: nothing}", "lacks {question}"),
        ("answer_form: opton", "'opton'; near: option"),
        ("question_form: gird", "'gird'; near: grid"),
    ],
)
def test_a_broken_task_file_says_what_is_wrong(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"description: d\nrows: r.jsonl\n{line}\n")
    with pytest.raises(ValueError) as caught:
        load_benchmark(str(path))
    assert message in str(caught.value)


def test_suites_are_the_papers_benchmarks() -> None:
    """Every one of its sixteen columns, with its numbers; the means are those of its tables."""
    papers = {
        name: [load_benchmark(task).paper for task in tasks] for name, tasks in SUITES.items()
    }
    tables = {name: [paper for paper in found if paper] for name, found in papers.items()}
    assert {name: len(found) for name, found in tables.items()} == {"paper_vlm": 8, "paper_llm": 8}
    for name, student, dopd in (
        ("paper_vlm", "Qwen3-VL-2B", 58.4),
        ("paper_llm", "Qwen3-1.7B", 51.4),
    ):
        assert sum(paper["DOPD"] for paper in tables[name]) / 8 == pytest.approx(dopd, abs=0.06)
        assert all(paper[student] < paper["DOPD"] for paper in tables[name])
    assert sum(p["VA-OPD"] for p in tables["paper_vlm"]) / 8 == pytest.approx(56.3, abs=0.06)
    assert sum(p["EOPD"] for p in tables["paper_llm"]) / 8 == pytest.approx(46.1, abs=0.06)


def test_parts_of_a_task() -> None:
    parts = load_benchmark("dynamath").parts
    assert [part.split for part in parts] == [f"sample_variant{i}" for i in range(1, 11)]
    assert parts[2].label == "sample_variant3"
    assert [(p.rows, p.config, p.label) for p in load_benchmark("livebench").parts[:2]] == [
        ("livebench/reasoning", None, "reasoning"),
        ("livebench/math", None, "math"),
    ]
    assert [part.label for part in load_benchmark("mmstar").parts] == [""]


def test_unknown_task_names_near_ones() -> None:
    with pytest.raises(ValueError, match="unknown task 'shape'; near: shapes"):
        load_benchmark("shape")


def test_several_greedy_completions_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        Sampling(num_generations=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: r", "own.yaml lacks description"),
        ("- a", "must hold settings of a benchmark, got list"),
        ("", "must hold settings of a benchmark, got NoneType"),
        ("a: [", "own.yaml is no YAML"),
        ("rows: r\ndescription: d\nprompts: x", "own.yaml, prompts must be a mapping"),
        (
            "rows: r\ndescription: d\nannotations: 5",
            "own.yaml: something that must be a list or a mapping",
        ),
        (
            "rows: r\ndescription: d\nkeep: [a]",
            "own.yaml: something that must be a list or a mapping",
        ),
        ("rows: r\ndescription: d\ngeneration: {temperature: warm}", "own.yaml, generation: "),
    ],
)
def test_whatever_an_own_task_file_gets_wrong_names_the_file(tmp_path, text, message) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_benchmark(str(tmp_path / "own.yaml"))
