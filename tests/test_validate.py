"""The validator's checks, and what counts as a disclosed answer."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from dopd_vlm.data.annotations.disclosure import disclosed
from dopd_vlm.data.annotations.registry import TYPES
from dopd_vlm.data.validate import data_card, validate

SCRIPT = Path(__file__).parents[1] / "scripts" / "validate.py"
CHOICES = {"A": "left", "B": "right", "C": "behind"}


@pytest.mark.parametrize(
    ("text", "answer", "choices"),
    [
        ("that makes twenty-one", "21", None),
        ("that makes Twenty one", "21.0", None),
        ("about 1/2 of it", "0.5", None),
        (r"so \frac{1}{2} remains", "1/2", None),
        ("0.5 remains", r"\frac{1}{2}", None),
        ("1,200.0 people", "1200", None),
        ("it is **B**", "B", CHOICES),
        (r"\boxed{B}", "B", CHOICES),
        ("B is correct", "B", CHOICES),
        ("the right one is B", "B", CHOICES),
        ('pick "B"', "B", CHOICES),
        ("look to the right", "B", CHOICES),
        ("options A and (C)", "A,C", CHOICES),
    ],
)
def test_variants_that_disclose(text, answer, choices) -> None:
    assert disclosed(text, answer, choices)


@pytest.mark.parametrize(
    ("text", "answer", "choices"),
    [
        ("twenty things", "21", None),
        ("on 1/2/2024", "0.5", None),
        ("half of 11/20", "0.5", None),
        ("A cup stands behind B", "B", CHOICES),
        ("look at the left side", "B", CHOICES),
        ("Bright things", "B", CHOICES),
        ("three of four", "7", None),
    ],
)
def test_variants_that_do_not(text, answer, choices) -> None:
    assert disclosed(text, answer, choices) is None


def row(uid, colour="red", **more):
    image = Image.new("RGB", (8, 6), colour)
    return {"uid": uid, "images": [image], "question": f"what {uid} ?", "answer": "cup", **more}


def test_leaks_repetitions_and_overlaps_are_told_apart() -> None:
    caption = "a table with many things"
    rows = [
        row("fine", annotations={"captions": [caption]}),
        row("leak", question=f"Given {caption}, what ?", annotations={"captions": [caption]}),
        row("told", question="is it a cup or a plate ?"),
        row("again", question=" What  fine ?"),
        row("taken", "blue"),
        row("near", "green", hint="x"),
        row("bad", question=""),
    ]
    report = validate(
        rows, against=[row("taken", "blue"), row("other", "green"), row("x", question="")]
    )
    found = {
        name: getattr(report, name)
        for name in ("leaking", "answered", "repeated", "overlapping", "shared_images")
    }
    assert found == {
        "leaking": ["leak"], "answered": ["told"], "repeated": ["again"],
        "overlapping": ["taken"], "shared_images": ["near"],
    }  # fmt: skip
    assert [problem.uid for problem in report.problems] == ["bad"]
    card = data_card(report, "mine")
    assert "| the question holds privileged text | 1 | leak |" in card
    assert "column 'hint' in 1 rows: VLMEvalKit prints" in card
    assert "rows: 7, of which 6 are good and 1 are not" in card


def test_the_script_fails_on_an_overlap_and_writes_the_card(tmp_path, monkeypatch) -> None:
    source, card = tmp_path / "a.jsonl", tmp_path / "card.md"
    source.write_text('{"uid": "x", "question": "what ?", "answer": "1"}')
    arguments = [str(source), "--card", str(card), "--against", str(source)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "| question and images are in the other set | 1 | x |" in card.read_text()


def test_answers_options_and_what_a_model_cannot_take_are_told() -> None:
    rows = [
        row("good"),
        row("same", "blue", choices={"A": "x", "B": "x"}, answer="A"),
        row("unread", "green"),
        row("taken", "white"),
    ]
    report = validate(
        rows,
        answer_problem=lambda s: f"sample {s.uid!r}: no gold" if s.uid == "unread" else None,
        model_problem=lambda s: f"sample {s.uid!r}: too long" if s.uid == "taken" else None,
    )
    assert report.doubled == ["same"] and report.unscorable == ["sample 'unread': no gold"]
    assert [(bad.uid, bad.reason) for bad in report.problems] == [
        ("taken", "sample 'taken': too long")
    ]
    card = data_card(report, "t")
    assert "| two options are the same | 1 | same |" in card
    assert "count in no accuracy\n\n- sample 'unread': no gold" in card


def test_a_type_that_fails_only_when_it_draws_is_found(monkeypatch) -> None:
    class Broken(type(TYPES["boxes"])):
        def draw(self, images, value):
            raise KeyError("pen")

    monkeypatch.setitem(TYPES, "boxes", Broken())
    boxes = {"boxes": [{"bbox": [1, 1, 3, 3], "label": "x"}]}
    own = {"teacher_images": [Image.new("RGB", (8, 6))]}
    report = validate([row("a", annotations=boxes), row("b", annotations=boxes, **own)])
    assert [bad.reason for bad in report.problems] == [
        "row 'a': annotations.boxes: KeyError: 'pen'"
    ]
