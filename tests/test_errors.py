"""One message for a name that nobody knows."""

import difflib
from pathlib import Path

from dopd_vlm.errors import unknown

ROOT = Path(__file__).parent.parent


def test_the_message_names_what_was_given_what_is_near_and_what_there_is() -> None:
    error = unknown("task", "shaps", ["lists", "shapes", "scenes"])
    assert isinstance(error, ValueError)
    assert str(error) == "unknown task 'shaps'; near: shapes; known: lists, shapes, scenes"
    assert str(unknown("task", 7, ["lists"])) == "unknown task 7; known: lists"
    assert str(unknown("task", "x", [])) == "unknown task 'x'; known: (none)"


def test_a_long_list_is_cut_and_says_so() -> None:
    text = str(unknown("name", "zzz", (f"a{i}" for i in range(45))))
    assert text.endswith("a38, a39 and 5 more") and "near" not in text


def test_near_names_are_looked_up_in_one_place() -> None:
    lookups = [
        str(path.relative_to(ROOT))
        for folder in ("dopd_vlm", "data", "eval", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if difflib.__name__ in path.read_text(encoding="utf-8")
    ]
    # LiveBench's rule scores by nearest words: no error, but what the official code does.
    assert sorted(lookups) == ["dopd_vlm/errors.py", "eval/official/livebench_rules.py"]
