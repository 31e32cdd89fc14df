"""Task files: all of them load, and mistakes are named."""

from pathlib import Path

import pytest

from dopd_vlm.eval.benchmarks import SUITES, Generation, benchmark_names, load_benchmark


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
        ("answr_type: text", "answr_type is unknown; near: answer_type"),
        ("answer_type: numbr", "near: number"),
        ("generation: {temperatur: 1}", "generation.temperatur is unknown; near: temperature"),
        ("generation: {temperature: -1}", "must not be negative"),
        ("prompts: {question: nothing}", "lacks {question}"),
    ],
)
def test_a_broken_task_file_says_what_is_wrong(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"description: d\nrows: r.jsonl\n{line}\n")
    with pytest.raises(ValueError) as caught:
        load_benchmark(str(path))
    assert message in str(caught.value)


def test_suites_hold_known_tasks() -> None:
    assert {name for suite in SUITES.values() for name in suite} <= set(benchmark_names())


def test_unknown_task_names_near_ones() -> None:
    with pytest.raises(ValueError, match="unknown task 'shape'; near: shapes"):
        load_benchmark("shape")


def test_several_greedy_completions_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        Generation(num_generations=2)
