"""Rows of easy-vqa: captions are what the questions tell, and no more; a seed gives the same rows."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dopd_vlm.data.views import make_samples
from dopd_vlm.scripts.make.easy_vqa_rows import caption, rows, write
from dopd_vlm.scripts.wiring.samples import rows_of

RED_CIRCLE = [
    ("what color is the shape?", "red"),
    ("is there a blue shape?", "no"),
    ("is there not a square?", "yes"),
    ("does the image not contain a circle?", "no"),
]


def test_a_caption_is_what_the_questions_tell():
    assert caption(RED_CIRCLE) == "a red circle"
    assert caption([("is a teal shape present?", "yes"), ("is no triangle present?", "no")]) == (
        "a teal triangle"
    )


@pytest.mark.parametrize(
    "asked",
    [
        RED_CIRCLE[:3],
        [("what shape is present?", "circle"), ("is there a red shape?", "no")],
        [("what shape is present?", "circle"), ("is no red shape present?", "yes")],
        [],
    ],
)
def test_without_colour_or_shape_there_is_no_caption(asked):
    assert caption(asked) is None


def questions(num_images: int) -> list[tuple[str, str, int]]:
    """Four questions on each image; every third lacks the one that tells its shape."""
    return [
        (text, answer, image)
        for image in range(num_images)
        for text, answer in (RED_CIRCLE[:3] if image % 3 == 2 else RED_CIRCLE)
    ]


def test_rows_are_drawn_by_seed_from_images_with_a_caption():
    drawn = rows(questions(6), "train", 10, 0)
    assert drawn == rows(questions(6), "train", 10, 0) != rows(questions(6), "train", 10, 1)
    assert len({row["uid"] for row in drawn}) == 10
    assert {row["images"][0] for row in drawn} <= {f"images/{image}.png" for image in (0, 1, 3, 4)}
    assert len(rows(questions(6), "train", 99, 0)) == 16


def test_what_is_written_is_read_as_samples(tmp_path):
    source = tmp_path / "data" / "test"
    (source / "images").mkdir(parents=True)
    for image in range(2):
        Image.new("RGB", (32, 32), (255, 0, 0)).save(source / "images" / f"{image}.png")
    Path(source, "questions.json").write_text(json.dumps(questions(2)))
    write(tmp_path / "data", tmp_path / "out", "test", 3, 0)
    samples, skipped = make_samples(rows_of(str(tmp_path / "out" / "test"), None), ["captions"])
    assert len(samples) == 3 and not skipped
    assert all("a red circle" in sample.privileged.context for sample in samples)
    with pytest.raises(FileExistsError):
        write(tmp_path / "data", tmp_path / "out", "test", 3, 0)
