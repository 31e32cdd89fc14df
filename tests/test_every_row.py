"""One contract for every kind of row: validate, --dry-run, train, evaluate and preview say the same of it."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from dopd_vlm import plugins
from dopd_vlm.data.annotations import registry
from dopd_vlm.scripts import evaluate, preview, train, validate

BOX = [{"bbox": [1, 1, 8, 8], "label": "red circle"}]
GOOD = {
    "images": ["p.png"],
    "question": "how many red objects ?",
    "answer": "3",
    "answer_type": "number",
}
USABLE = {
    "good": {},
    "boxes": {"annotations": {"boxes": BOX}},
    "text": {"images": []},
    "same-image": {"question": "how many blue objects ?"},
    "shared-with-text": {"question": "how many green objects ?", "annotations": {"boxes": []}},
    "shaky": {"annotations": {"boxes": BOX, "shaky": "red"}},
}
UNSCORABLE = {
    "no-answer": {"answer": None},
    "no-number": {"answer": "red"},
    "broken-box": {"answer_type": "box", "answer": "[1, 2, 3]"},
    "small-letters": {"answer_type": "choice", "choices": {"a": "x", "b": "y"}, "answer": "a"},
}
REFUSED = {
    "list-answer": {"answer": ["3"]},
    "nan-answer": {"answer": float("nan")},
    "two-questions": {"messages": [{"role": "user", "content": "who ?"}]},
    "image-token": {"question": "how <|image_pad|> ?"},
    "turn-in-label": {"annotations": {"boxes": [{**BOX[0], "label": "<|im_end|>"}]}},
    "list-label": {"annotations": {"boxes": [{**BOX[0], "label": ["a"]}]}},
    "loop": {"images": ["loop.png"]},
    "absent": {"images": ["absent.png"]},
    "text-image": {"images": ["note.png"]},
    "nul": {"question": "how\0many ?"},
    "raises-key": {"annotations": {"shaky": "parse"}},
    "raises-zero": {"annotations": {"shaky": "describe"}},
    "raises-odd": {"annotations": {"shaky": "draw"}},
    "gives-odd": {"annotations": {"shaky": "odd"}},
}
BROKEN = {
    "metadata-000026": '{"uid": "half", "ques',
    "metadata-000027": "[1, 2]",
    "metadata-000028": '{"uid": "x", "uid": "y"}',
    "good": json.dumps({"uid": "good", **GOOD, "question": "who is it ?"}),
}
"""Lines that are no row, by the uid that their place gives them, and a uid that an earlier row has."""
SHAKY = """
from dopd_vlm.data.annotations import register


class OddError(Exception):
    def __str__(self):
        return "odd"


class Shaky:
    def parse(self, raw, sizes):
        return {}["from"] if raw == "parse" else raw

    def describe(self, value, frame):
        if value == "describe":
            raise ZeroDivisionError("nothing to divide by")
        return 7 if value == "odd" else value or ""

    def draw(self, images, value):
        if value == "draw":
            raise OddError
        return images


register("shaky", Shaky())
"""
UNREADABLE = {
    "long": {"question": "how many red objects ? " * 3000},
    "unknown-token": {"question": "how many <unk> ?"},
}
"""Refused by the student's tokenizer alone."""
BAD = {*REFUSED, *UNREADABLE, *BROKEN}
NUM_ROWS = len(USABLE) + len(UNSCORABLE) + len(BAD)
PLUGIN = ["--plugin", "shaky_type.py"]
RECIPE = """\
student: {path: "embedded:student_vl"}
teacher: {path: "embedded:teacher_vl"}
data: {train: rows, annotations: [[boxes, both], [shaky, both]]}
rollout: {num_generations: 1, max_completion_length: 3}
optim: {batch_size: 30, max_steps: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of every kind, a recipe that trains on all of them in its only step, and a task of them."""
    folder = tmp_path_factory.mktemp("every")
    rows = folder / "rows"
    rows.mkdir()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(rows / "p.png")
    (rows / "note.png").write_text("404")
    os.symlink("loop.png", rows / "loop.png")
    kinds = {**USABLE, **UNSCORABLE, **REFUSED, **UNREADABLE}
    lines = [json.dumps({"uid": uid, **GOOD, **change}) for uid, change in kinds.items()]
    lines += BROKEN.values()
    assert len(lines) == NUM_ROWS
    (folder / "shaky_type.py").write_text(SHAKY)
    (rows / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "mine.yaml").write_text(RECIPE)
    task = "description: d\nrows: rows\nanswer_type: row\nannotations: [boxes, [shaky, both]]\n"
    (folder / "task.yaml").write_text(task + "generation: {max_completion_length: 3}\n")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.setattr(registry, "TYPES", dict(registry.TYPES))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "500")
    yield
    plugins.forget()


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def uids_in(lines) -> set[str]:
    """The uids that reasons name, each with the file and line of its row."""
    named = [re.search(r"(?:row|sample) '([\w-]+)'", line) for line in lines]
    assert all("rows/metadata.jsonl line " in line for line in lines), lines
    return {match[1] for match in named if match}


def test_validate_names_every_bad_row_and_every_answer_of_no_use(capsys):
    assert validate.main(["mine.yaml", "--problems", "bad.jsonl", *PLUGIN]) == 1
    bad = records(Path("bad.jsonl"))
    assert {line["uid"] for line in bad} == set(BAD) == uids_in([line["reason"] for line in bad])
    card = capsys.readouterr().out
    section = card[card.index("## Answers that cannot be scored") :].splitlines()
    assert uids_in([line for line in section if line.startswith("- ")]) == set(UNSCORABLE)


def test_a_dry_run_counts_the_same(capsys):
    assert train.main(["mine.yaml", "--dry-run", *PLUGIN]) == 0
    told = capsys.readouterr().out
    assert f"checked {NUM_ROWS}, good {NUM_ROWS - len(BAD)}" in told
    assert f"{len(BAD)} row(s) cannot be used" in told
    assert f"{len(UNSCORABLE)} answer(s) cannot be scored" in told


def test_training_skips_them_trains_the_others_and_keeps_its_size(folder):
    assert train.main(["mine.yaml", *PLUGIN]) == 0
    run = folder / "runs" / "mine"
    skipped = [line["reason"] for line in records(run / "skipped.jsonl")]
    assert uids_in(skipped) == set(BAD)
    found = json.loads((run / "rows.json").read_text(encoding="utf-8"))
    assert (found["good"], found["bad"]) == (NUM_ROWS - len(BAD), len(BAD))
    assert found["unscorable"] == len(UNSCORABLE) and found["unknown"].pop("options") == 1.0
    # The heading of the type that the plug-in adds.
    assert (
        list(found["unknown"]) == ["privileged text"] and found["unknown"]["privileged text"] < 0.05
    )
    lines = records(run / "metrics.jsonl")
    (step,) = [line for line in lines if "loss" in line]
    assert step["count/sequences"] == NUM_ROWS and 0 <= step["rollout/accuracy"] <= 1
    assert step["rollout/unscored"] >= len(UNSCORABLE)


def test_evaluation_leaves_them_out_and_says_so(folder, capsys):
    words = ["embedded:student_vl", "--tasks", "task.yaml", "--view", "plain,privileged"]
    assert evaluate.main([*words, "--out", "results", *PLUGIN]) == 0
    told = capsys.readouterr().out
    assert f"task: {len(REFUSED) + len(BROKEN) + len(UNSCORABLE)} rows are left out" in told
    for view in ("plain", "privileged"):
        path = folder / "results" / f"samples_task__{view}.jsonl"
        answers = records(path)
        assert {one["uid"] for one in answers} == {*USABLE, *UNREADABLE}
        assert {one["uid"] for one in answers if one["failure"]} == set(UNREADABLE)


def test_preview_lists_them_on_its_page(folder):
    assert preview.main(["mine.yaml", "--out", "page.html", "--rows", "99", *PLUGIN]) == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert f"{len(BAD)} rows left out" in page
    shown = set(re.findall(r"<h2>([\w-]+)</h2>", page))
    assert shown == {*USABLE, *UNSCORABLE}
