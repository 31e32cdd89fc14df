"""Annotation types: one contract for all, then what each writes, draws and refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_masks

from dopd_vlm.data.annotations import registry as annotations
from dopd_vlm.data.annotations.boxes import Box
from dopd_vlm.data.annotations.disclosure import disclosed
from dopd_vlm.data.annotations.masks import decode_runs, encode_runs
from dopd_vlm.data.annotations.registry import (
    TYPES,
    AnnotationType,
    CheckedType,
    DrawnType,
    annotation_type,
    forms,
    register,
    type_names,
)
from dopd_vlm.data.coords import Frame

SIZES = [(120, 70), (64, 90)]
FRAME = Frame(family="qwen3", size=SIZES[0], rest=(Frame(family="qwen3", size=SIZES[1]),))
EXAMPLES = {
    "boxes": [
        {"bbox": [12, 7, 60, 35], "label": "red circle"},
        {"bbox": [0, 10, 64, 80], "label": "blue square", "image": 1},
    ],
    "captions": ["a red circle", "a blue square"],
    "hints": ["step 1: look at the circle", "step 2: name its colour"],
    "answer": "red",
    "points": [{"point": [60, 35], "label": "dot"}, {"point": [64, 0], "image": 1}],
    "masks": [
        {"segmentation": [[12, 7, 60, 7, 60, 42]], "label": "half"},
        {"segmentation": {"size": [90, 64], "counts": [0, 90, 5670]}, "label": "edge", "image": 1},
    ],
    "crops": [{"bbox": [12, 7, 60, 35], "label": "red circle"}],
    "marks": [{"bbox": [12, 7, 60, 35], "label": "red circle"}, {"bbox": [1, 2, 9, 8], "image": 1}],
    "ocr": [{"bbox": [12, 7, 60, 35], "text": "EXIT"}],
    "scene_graph": [["cup", "on", "table"], ["spoon", "right of", "cup"]],
    "summary": "find the circle, then judge its colour",
    "solution": ["the circle is at the left", "so the answer is red"],
}
BAD = {
    "boxes": ["here", [{"bbox": [1, 2, 3]}], [3], {"bbox": [1, 2, 3, 4]}],
    "captions": [3, [3], {"a": 1}],
    "hints": [3, [None], {"a": 1}],
    "answer": [],
    "points": ["x", [{"point": [1]}], [{"point": [121, 3]}], [{"point": [1, float("nan")]}]],
    "masks": [
        "x",
        [{"segmentation": []}],
        [{"segmentation": [1, 2, 3, 4]}],
        [{"segmentation": [0, 0, 500, 0, 3, 3]}],
        [{"segmentation": {"size": [120, 70], "counts": [8400]}}],
        [{"segmentation": {"size": [70, 120], "counts": [8, 3]}}],
        [{"segmentation": {"size": [70, 120], "counts": [8400]}}],
        [{"segmentation": {"size": [70, 120], "counts": "\u00e9"}}],
    ],
    "crops": ["x", [{"bbox": [100, 10, 40, 20]}]],
    "marks": ["x", [{"bbox": [100, 10, 40, 20]}]],
    "ocr": ["x", [{"bbox": [12, 7, 60, 35]}], [{"bbox": [12, 7, 60, 350], "text": "EXIT"}]],
    "scene_graph": ["cup on table", [["cup", "on"]], [["cup", "", "table"]], [3]],
    "summary": [3, [None]],
    "solution": [3, [None]],
}


def images() -> list[Image.Image]:
    return [Image.linear_gradient("L").resize(size).convert("RGB") for size in SIZES]


@pytest.fixture(params=sorted(TYPES))
def kind(request) -> tuple[str, AnnotationType]:
    """Every built-in type; a new one needs an entry in EXAMPLES and in BAD."""
    return request.param, TYPES[request.param]


@pytest.mark.filterwarnings("ignore:annotation type 'answer'")
def test_contract_text_is_stable_and_says_something(kind) -> None:
    name, instance = kind
    texts = {instance.describe(instance.parse(EXAMPLES[name], SIZES), FRAME) for _ in range(3)}
    assert len(texts) == 1
    text = texts.pop()
    assert text == text.strip() != ""


def test_contract_nothing_in_nothing_out(kind) -> None:
    _, instance = kind
    value = instance.parse(None, SIZES)
    assert instance.describe(value, FRAME) == ""
    if isinstance(instance, DrawnType):
        given = images()
        drawn = instance.draw(given, value)
        assert [image.tobytes() for image in drawn] == [image.tobytes() for image in given]


def test_contract_bad_values_are_value_errors(kind) -> None:
    name, instance = kind
    for raw in BAD[name]:
        with pytest.raises(ValueError, match=r"must be|leaves|has no"):
            instance.parse(raw, SIZES)


def test_contract_parsing_leaves_the_row_alone(kind) -> None:
    name, instance = kind
    before = json.dumps(EXAMPLES[name])
    instance.parse(EXAMPLES[name], SIZES)
    assert json.dumps(EXAMPLES[name]) == before


def test_contract_drawing_changes_copies_only(kind) -> None:
    name, instance = kind
    if not isinstance(instance, DrawnType):
        assert forms(name) == ("text",)
        return
    given = images()
    before = [image.tobytes() for image in given]
    value = instance.parse(EXAMPLES[name], SIZES)
    drawn, again = instance.draw(given, value), instance.draw(given, value)
    assert [image.tobytes() for image in given] == before
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in again]
    assert [image.tobytes() for image in drawn] != before
    assert len(drawn) >= len(given) and all(image.mode == "RGB" for image in drawn)


def test_contract_checked_types_let_a_foreign_answer_pass(kind) -> None:
    name, instance = kind
    if isinstance(instance, CheckedType):
        instance.check(instance.parse(EXAMPLES[name], SIZES), "green", None)


def test_boxes_are_xywh_outside_and_xyxy_inside() -> None:
    boxes = TYPES["boxes"].parse(EXAMPLES["boxes"], SIZES)
    assert boxes[0] == Box(xyxy=(12, 7, 72, 42), label="red circle", image=0)


def test_boxes_as_text_are_the_family_s_json() -> None:
    kind = TYPES["boxes"]
    value = kind.parse(EXAMPLES["boxes"][:1], SIZES[:1])
    text = kind.describe(value, Frame(family="qwen3", size=SIZES[0]))
    assert text == '[{"bbox_2d": [100, 100, 600, 600], "label": "red circle"}]'
    text = kind.describe(value, Frame(family="qwen2_5", size=SIZES[0], resized=(112, 84)))
    assert text == '[{"bbox_2d": [11, 8, 67, 50], "label": "red circle"}]'


def test_boxes_of_several_images_are_told_apart() -> None:
    text = TYPES["boxes"].describe(TYPES["boxes"].parse(EXAMPLES["boxes"], SIZES), FRAME)
    assert text.splitlines() == [
        'image 1: [{"bbox_2d": [100, 100, 600, 600], "label": "red circle"}]',
        'image 2: [{"bbox_2d": [0, 111, 1000, 1000], "label": "blue square"}]',
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbox": [100, 10, 40, 20]}, r"leaves image 0 of 120 x 70 pixels by 20"),
        ({"bbox": [-3, 10, 40, 20]}, r"leaves image 0"),
        ({"bbox": [10, 10, 0, 20]}, r"has no area; boxes are \[x, y, width, height\]"),
        ({"bbox": [10, 10, 20, -5]}, r"has no area"),
        ({"bbox": [float("nan"), 10, 20, 5]}, r"4 finite numbers"),
        ({"bbox": [10, 10, float("inf"), 5]}, r"4 finite numbers"),
        ({"bbox": ["1", 10, 20, 5]}, r"4 finite numbers"),
        ({"bbox": None}, r"must be 4 numbers"),
        ({"bbox": [1, 2, 3, 4], "image": 2}, r"names image 2, but the row has 2 images"),
    ],
)
def test_impossible_boxes_are_refused(entry, message) -> None:
    with pytest.raises(ValueError, match=rf"\[1\].*{message}"):
        TYPES["boxes"].parse([EXAMPLES["boxes"][0], entry], SIZES)


def test_a_box_half_a_pixel_outside_is_clipped() -> None:
    (box,) = TYPES["boxes"].parse([{"bbox": [-0.4, 0, 120.8, 70.3]}], SIZES)
    assert box.xyxy == (0, 0, 120, 70)


def test_thousands_of_annotations_are_refused() -> None:
    box = EXAMPLES["boxes"][0]
    assert len(TYPES["boxes"].parse([box] * 1000, SIZES)) == 1000
    with pytest.raises(ValueError, match="at most 1000 objects, got 10000"):
        TYPES["boxes"].parse([box] * 10_000, SIZES)


@given(st.floats(0, 119), st.floats(0, 69), st.floats(0.01, 200), st.floats(0.01, 200))
def test_any_box_is_inside_or_refused_and_draws(x, y, w, h) -> None:
    kind = TYPES["boxes"]
    try:
        value = kind.parse([{"bbox": [x, y, w, h], "label": "a long label"}], SIZES)
    except ValueError:
        assert x + w > 120 or y + h > 70
        return
    left, top, right, bottom = value[0].xyxy
    assert 0 <= left < right <= 120 and 0 <= top < bottom <= 70
    assert isinstance(kind, DrawnType)
    assert kind.draw(images(), value)[0].size == SIZES[0]


def test_masks_are_painted_where_they_are_and_described_by_their_outline() -> None:
    kind = TYPES["masks"]
    value = kind.parse(EXAMPLES["masks"], SIZES)
    assert isinstance(kind, DrawnType)
    white = [Image.new("RGB", size, "white") for size in SIZES]
    drawn = kind.draw(white, [replace(mask, label="") for mask in value])
    assert drawn[0].getpixel((55, 12)) != (255, 255, 255) == drawn[0].getpixel((20, 35))
    assert drawn[1].getpixel((0, 89)) != (255, 255, 255) == drawn[1].getpixel((1, 0))
    assert kind.describe(value, FRAME).splitlines() == [
        'image 1: [{"polygon_2d": [100, 100, 500, 100, 500, 600], "label": "half"}]',
        'image 2: [{"bbox_2d": [0, 0, 16, 1000], "label": "edge"}]',
    ]


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 70))))
def test_run_lengths_are_pycocotools_own(area) -> None:
    theirs = coco_masks.encode(np.asfortranarray(area.astype(np.uint8)))["counts"].decode()
    ours = encode_runs(area)
    assert ours == {"size": list(area.shape), "counts": theirs}
    assert (decode_runs(theirs, area.shape) == area).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=9), st.integers(1, 3))
def test_run_lengths_as_text_and_as_a_list_are_one_mask(lengths, height) -> None:
    lengths = [height * length for length in lengths] if sum(lengths) else [height]
    size = (height, sum(lengths) // height)
    runs = coco_masks.frPyObjects({"size": list(size), "counts": lengths}, *size)
    assert (decode_runs(runs["counts"].decode(), size) == decode_runs(lengths, size)).all()
    assert (decode_runs(lengths, size) == coco_masks.decode(runs).astype(bool)).all()


def test_crops_are_further_images_that_show_the_region() -> None:
    image = Image.new("RGB", (400, 300), "white")
    image.paste("red", (200, 100, 240, 130))
    kind = TYPES["crops"]
    assert isinstance(kind, DrawnType)
    value = kind.parse([{"bbox": [200, 100, 40, 30], "label": "sign"}], [(400, 300)])
    own, crop = kind.draw([image], value)
    assert own.tobytes() == image.tobytes()
    assert max(crop.size) == 448
    assert crop.getpixel((crop.width // 2, crop.height // 2)) == (255, 0, 0)
    assert crop.getpixel((2, 2)) == (255, 255, 255)
    text = kind.describe(value, Frame(family="pixel", size=(400, 300)))
    assert text == "crop 1: sign, image 1 at [200, 100, 240, 130]"


def test_marks_number_regions_over_all_images() -> None:
    kind = TYPES["marks"]
    value = kind.parse(EXAMPLES["marks"], SIZES)
    assert kind.describe(value, FRAME) == "1: red circle\n2: region"
    assert isinstance(kind, DrawnType)
    first, second = kind.draw(images(), value)
    assert first.getpixel((42, 20)) != images()[0].getpixel((42, 20))
    assert second.tobytes() != images()[1].tobytes()


def test_labels_may_be_in_any_script() -> None:
    kind = TYPES["boxes"]
    value = kind.parse([{"bbox": [1, 2, 30, 40], "label": "tasse \u676f"}], SIZES[:1])
    text = kind.describe(value, Frame(family="pixel", size=SIZES[0]))
    assert json.loads(text)[0]["label"] == "tasse \u676f"
    assert isinstance(kind, DrawnType)
    assert kind.draw(images()[:1], value)[0].size == SIZES[0]


@pytest.mark.parametrize(
    ("text", "answer", "choices"),
    [
        ("So it is red.", "red", None),
        ("So it is RED", "red", None),
        ("that makes 12 in all", "12", None),
        ("that makes 12.0", "12", None),
        ("that makes 1,200 in all", "1200", None),
        ("so twelve remain", "12", None),
        ("x = -4", "-4", None),
        ("hence (B)", "B", {"A": "cat", "B": "dog"}),
        ("choose B", "B", {"A": "cat", "B": "dog"}),
        ("The answer is B.", "B", {"A": "cat", "B": "dog"}),
        ("B", "B", {"A": "cat", "B": "dog"}),
        ("it barks like a Dog", "B", {"A": "cat", "B": "dog"}),
        ("so x = \\frac{1}{2}", "\\frac{1}{2}", None),
    ],
)
def test_hints_that_disclose_are_found(text, answer, choices) -> None:
    assert disclosed(text, answer, choices) is not None
    hints = TYPES["hints"]
    assert isinstance(hints, CheckedType)
    with pytest.raises(ValueError, match=r"\[1\] .*discloses the answer"):
        hints.check(("look", text), answer, choices)


@pytest.mark.parametrize(
    ("text", "answer", "choices"),
    [
        ("count the redwood trees", "red", None),
        ("there are 120 or 3.12 of them", "12", None),
        ("step 2: count them", "2", None),
        ("2. count them", "2", None),
        ("Because a cat is small", "B", {"A": "cat", "B": "dog"}),
        ("An image shows it: A", "B", {"A": "cat", "B": "dog"}),
        ("look again", "", None),
        ("weight", "8", None),
    ],
)
def test_hints_that_do_not_disclose_pass(text, answer, choices) -> None:
    hints = TYPES["hints"]
    assert isinstance(hints, CheckedType)
    hints.check((text,), answer, choices)


def test_the_answer_type_warns() -> None:
    with pytest.warns(UserWarning, match="ablation"):
        assert TYPES["answer"].describe("red", FRAME) == "red"


def test_an_unknown_type_names_the_near_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'box'; near: boxes.*; known: answer, boxes, captions, crops"
    ):
        annotation_type("box")


class Loud:
    """A type of another package."""

    def parse(self, raw, sizes):
        return str(raw or "")

    def describe(self, value, frame):
        return value.upper()


def test_a_registered_type_is_used_and_a_name_is_taken_once(monkeypatch) -> None:
    monkeypatch.setattr(annotations, "TYPES", dict(TYPES))
    register("loud", Loud())
    assert annotation_type("loud").describe("hey", FRAME) == "HEY"
    assert "loud" in type_names() and forms("loud") == ("text",)
    with pytest.raises(ValueError, match="'boxes' exists already: Boxes"):
        register("boxes", Loud())
    with pytest.raises(ValueError, match=r"need an instance with parse"):
        register("class", Loud)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"need an instance with parse"):
        register("object", object())  # pyright: ignore[reportArgumentType]


def test_a_type_of_another_package_comes_by_entry_point(tmp_path, monkeypatch) -> None:
    info = tmp_path / "louds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: louds\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dopd_vlm.annotations]\nloud = louds:Loud\n")
    (tmp_path / "louds.py").write_text(
        "class Loud:\n"
        "    def parse(self, raw, sizes):\n        return str(raw)\n"
        "    def describe(self, value, frame):\n        return value + '!'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    annotations._plugins.cache_clear()
    assert annotation_type("loud").describe("hey", FRAME) == "hey!"
    annotations._plugins.cache_clear()
