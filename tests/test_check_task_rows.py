"""scripts/check_task_rows.py on fixture rows: counts, broken rows and golds that do not count."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dopd_vlm.scripts import check_task_rows

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures" / "tasks"
Check = Callable[..., tuple[int, str]]
"""(arguments) -> exit status and what was printed."""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    def call(*arguments: str | Path) -> tuple[int, str]:
        status = check_task_rows.main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def test_gold_wrong_and_empty_texts_are_tried(check: Check) -> None:
    status, text = check("livebench", FIXTURES / "livebench.jsonl")
    # Code and instructions have no gold text.
    assert status == 0 and text.splitlines() == [
        "livebench: 5 rows, 5 used, 0 left out",
        "gold accepted: 3/3",
        "wrong rejected: 5/5",
        "empty unread: 5/5",
    ]


def test_broken_rows_and_false_golds_are_shown(check: Check, tmp_path: Path) -> None:
    good = json.loads((FIXTURES / "bfclv3.jsonl").read_text().splitlines()[0])
    false = {**good, "id": "simple_1", "ground_truth": [{"rect.area": {"radius": [3]}}]}
    lost = {**good, "id": "simple_2", "ground_truth": None}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in (good, false, lost)))
    status, text = check("bfclv3", rows)
    assert status == 1 and "'simple_2' has no ground_truth" in text
    assert "gold accepted: 1/2\n  bfclv3-simple_1: '[rect.area(radius=3)]'" in text
    status, text = check("bfclv4", rows)
    assert status == 2 and "unknown task 'bfclv4'; near: bfclv3" in text


def test_images_may_be_absent(check: Check) -> None:
    status, text = check("mmstar", FIXTURES / "mmstar.jsonl", "--no-images", "--limit", "1")
    assert status == 0 and "2 rows, 1 used" in text


OURS = """\
description: rows in this project's own schema
rows: mine.jsonl
answer_type: row
"""


def test_rows_in_our_own_schema_are_tried_and_a_bad_one_is_named(check, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(OURS)
    good = {"uid": "a", "question": "what ?", "answer": "red"}
    rows = [
        good,
        {**good, "uid": "b", "answer_type": "number", "answer": "three red"},
        {**good, "uid": "c", "question": ""},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, text = check(tmp_path / "mine.yaml", tmp_path / "mine.jsonl")
    assert status == 1 and "mine: 3 rows, 3 used" in text
    assert "c: ValueError: row 'c'" in text and "the question is empty" in text
    (tmp_path / "mine.jsonl").write_text(json.dumps(good) + "\n")
    status, text = check(tmp_path / "mine.yaml", tmp_path / "mine.jsonl")
    assert status == 0 and "gold accepted: 1/1" in text


def test_a_gold_that_no_option_has_is_shown(check: Check, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"id": "1", "question": "Which? (A) x (B) y", "answer": "D", "skill": ["s"]}
    rows.write_text(json.dumps(row) + "\n")
    status, text = check("logicvista", rows, "--no-images")
    assert status == 1 and "gold 'D' is not among ['A', 'B']" in text
