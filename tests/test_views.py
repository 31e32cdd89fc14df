"""Rows -> Samples: the plain view never changes with what is privileged, and bad rows are told."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.data.annotations.registry import TYPES, forms, type_names
from dopd_vlm.data.coords import resized_size
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_sample, make_samples
from dopd_vlm.types import Sample

PHOTOS = Path(__file__).parents[1] / "data" / "assets" / "photos"
IMAGE = Image.linear_gradient("L").resize((48, 36)).convert("RGB")
EVERYTHING = [("boxes", "both"), "captions", "hints"]


def row(**changes):
    made = {
        "uid": "r1",
        "images": [IMAGE],
        "question": "which colour ?",
        "answer": "red",
        "annotations": {
            "boxes": [{"bbox": [12, 9, 24, 18], "label": "thing"}],
            "captions": ["a thing on grey"],
            "hints": ["step 1 look", "step 2 name it"],
        },
    }
    return {**made, **changes}


def plain_side(sample: Sample):
    """All that the student's prompt is made of."""
    pixels = [(image.size, image.mode, image.tobytes()) for image in sample.plain.images]
    asked = (sample.question, sample.choices, sample.system, sample.history)
    return pixels, asked, sample.plain.context


def test_the_context_is_one_section_per_type_in_order() -> None:
    sample = make_sample(row(), ["captions", "boxes", "hints"])
    assert sample.privileged.context == (
        "captions:\na thing on grey\n"
        'boxes:\n[{"bbox_2d": [250, 250, 750, 750], "label": "thing"}]\n'
        "hints:\nstep 1 look\nstep 2 name it"
    )
    assert sample.privileged.images == sample.plain.images
    assert sample.plain.context == ""


def test_forms_decide_between_text_and_images() -> None:
    text, drawn, both = (
        make_sample(row(), [("boxes", form)]).privileged for form in ("text", "drawn", "both")
    )
    assert text.context == both.context != "" == drawn.context
    assert drawn.images[0].tobytes() == both.images[0].tobytes() != text.images[0].tobytes()
    assert text.images[0].tobytes() == IMAGE.tobytes()


def test_ready_made_context_comes_first_and_no_annotation_leaves_the_views_equal() -> None:
    sample = make_sample(row(privileged_context=" look left \n"), ["captions"])
    assert sample.privileged.context == "look left\ncaptions:\na thing on grey"
    bare = make_sample(row(), [])
    assert bare.privileged == bare.plain


def test_teacher_images_none_is_the_student_s_and_empty_is_none() -> None:
    other = Image.new("RGB", (20, 50), "red")
    assert make_sample(row(teacher_images=None), []).privileged.images[0].size == (48, 36)
    assert make_sample(row(teacher_images=[]), []).privileged.images == ()
    given = make_sample(row(teacher_images=[other, other]), ["captions"])
    assert [image.size for image in given.privileged.images] == [(20, 50), (20, 50)]
    assert [image.size for image in given.plain.images] == [(48, 36)]
    with pytest.raises(ValueError, match="teacher_images of its own"):
        make_sample(row(teacher_images=[other]), [("boxes", "drawn")])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
boxes = st.builds(
    lambda x, y, w, h, label: {"bbox": [x, y, w, h], "label": label},
    st.integers(0, 20), st.integers(0, 15), st.integers(1, 28), st.integers(1, 21),
    st.text(max_size=9),
)  # fmt: skip
unknown = st.text(min_size=1, max_size=9).filter(
    lambda key: key not in {"uid", "images", "image", "question", "messages", "choices", "system",
                            "answer", "answer_type", "annotations", "teacher_images", "origin",
                            "meta", "privileged_context"}
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(boxes, max_size=3),
    st.lists(st.text(max_size=30), max_size=3),
    st.text(max_size=30),
    st.dictionaries(st.text(max_size=6), json_values, max_size=3),
    st.dictionaries(unknown, json_values, max_size=3),
    st.sampled_from([None, [], [Image.new("RGB", (9, 31), "red")]]),
    st.sampled_from(["red", "green", ""]),
)
def test_no_leak_whatever_is_privileged(found, lines, context, meta, others, teacher, answer):
    base = plain_side(make_sample(row(choices=None, system="be brief"), []))
    annotations = {"boxes": found, "captions": lines, "privileged": context, **others}
    chosen = [("boxes", "text" if teacher is not None else "both"), "captions"]
    changed = make_sample(
        row(
            system="be brief",
            annotations=annotations,
            privileged_context=context,
            teacher_images=teacher,
            meta=meta,
            answer=answer,
            **others,
        ),
        chosen,
    )
    assert plain_side(changed) == base


@pytest.mark.filterwarnings("ignore:annotation type 'answer'")
@pytest.mark.parametrize("name", type_names())
def test_no_type_in_any_form_changes_the_plain_view(name) -> None:
    base = plain_side(make_sample(row(), []))
    for form in forms(name):
        assert plain_side(make_sample(row(), [(name, form)])) == base


FIELDS = [
    "uid", "images", "question", "messages", "choices", "system", "answer", "answer_type",
    "annotations", "teacher_images", "privileged_context", "meta", "origin",
]  # fmt: skip
TYPED = [name for name in type_names() if name != "answer"]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))
def test_any_json_for_any_field_makes_a_sample_or_a_value_error(fields) -> None:
    samples, skipped = make_samples([row(**fields)], EVERYTHING)
    assert len(samples) + len(skipped) == 1


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(TYPED),
        json_values
        | st.lists(
            st.dictionaries(
                st.sampled_from(["bbox", "point", "segmentation", "label", "image", "text"]),
                json_values,
            ),
            max_size=2,
        ),
        min_size=1,
    )
)
def test_any_json_for_any_type_makes_a_sample_or_a_value_error(annotations) -> None:
    samples, skipped = make_samples(
        [row(annotations=annotations)], [(n, forms(n)[-1]) for n in TYPED]
    )
    assert len(samples) + len(skipped) == 1


def test_messages_give_system_history_question_and_answer() -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello", "image": None}]},
        {"role": "assistant", "content": "hi"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "left "},
                {"type": "image", "text": None},
                {"type": "text", "text": " right "},
                {"type": "image"},
            ],
        },
        {"role": "assistant", "content": "blue"},
    ]
    made = {"uid": "m", "messages": turns, "images": [IMAGE, IMAGE]}
    sample = make_sample(made, [])
    assert sample.question == "left <image> right <image>"
    assert (sample.system, sample.answer) == ("be brief", "blue")
    assert [(turn["role"], turn["content"]) for turn in sample.history] == [
        ("user", "hello"),
        ("assistant", "hi"),
    ]
    assert make_sample({**made, "answer": "own"}, []).answer == "own"


def test_choices_come_as_letters_list_or_json() -> None:
    for choices in (
        {"A": "red", "B": "blue", "C": None},
        ["red", "blue"],
        '{"A":"red","B":"blue"}',
    ):
        sample = make_sample(row(choices=choices, answer="B"), [])
        assert sample.choices == {"A": "red", "B": "blue"}
        assert sample.answer_type == "choice"
    assert make_sample(row(choices=["x", "y", "z"], answer="A, C"), []).answer == "A, C"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "  "}, "the question is empty"),
        ({"question": "<image>"}, "the question is empty"),
        ({"question": None}, "the question is empty"),
        ({"question": "<image> and <image> ?"}, "has 2 <image> but the row 1 images"),
        ({"images": ["absent.png"]}, r"absent\.png does not exist"),
        ({"images": "a.png"}, "images must be a list of images, got str"),
        ({"images": [{"bytes": b"GIF89a", "path": "x.gif"}]}, r"x\.gif"),
        ({"choices": ["a", "b"], "answer": "C"}, "'C' is not among the choices A, B"),
        ({"choices": ["a"], "answer": "A"}, "at least two"),
        ({"answer_type": "chioce"}, "near: choice"),
        ({"answer_type": "choice"}, "needs choices"),
        ({"annotations": {"boxes": [{"bbox": [40, 9, 24, 18]}]}}, r"boxes: \[0\]\.bbox.*leaves"),
        ({"annotations": {"hints": ["it is red"]}}, r"annotations\.hints: \[0\].*discloses"),
        ({"annotations": "{"}, "annotations is text that is no JSON"),
        ({"annotations": [1]}, "annotations must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}], "question": None}, "must have a role"),
        ({"system": 3}, "system must be a string"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_with_uid_and_file(changes, message) -> None:
    bad = row(**changes, origin={"file": "rows.jsonl", "line": 7})
    with pytest.raises(ValueError, match=rf"row 'r1' \(rows\.jsonl line 7\): .*{message}"):
        make_sample(bad, ["boxes", "hints"], max_pixels=5000)


def test_too_large_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 'r1': .*over the limit of 1000"):
        make_sample(row(), [], max_pixels=1000)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (["boxs"], "unknown annotation type 'boxs'; near: boxes"),
        ([("boxes", "drwan")], "'boxes': 'drwan'; near: drawn"),
        ([("captions", "drawn")], "'captions': 'drawn'; known: text"),
        (["boxes", ("boxes", "drawn")], "chosen twice"),
        ("boxes", "must be a list of names"),
    ],
)
def test_bad_choices_are_refused_before_any_row(annotations, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_samples([], annotations)


def test_bad_rows_are_counted_and_listed() -> None:
    rows = read_rows([row(), row(uid="r2", question=""), row(uid="r3")])
    samples, skipped = make_samples(rows, EVERYTHING)
    assert [sample.uid for sample in samples] == ["r1", "r3"]
    assert [(bad.uid, bad.file) for bad in skipped] == [("r2", "rows in memory")]
    assert "question is empty" in skipped[0].reason


def test_qwen2_5_takes_the_size_from_the_processor() -> None:
    from transformers import Qwen2VLImageProcessorPil

    class Processor:
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=14, size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
        )

    sample = make_sample(
        row(), ["boxes"], coords="qwen2_5", resize=lambda image: resized_size(Processor(), image)
    )
    assert '"bbox_2d": [14, 7, 42, 21]' in sample.privileged.context  # 48 x 36 -> 56 x 28
    with pytest.raises(ValueError, match="resize="):
        make_sample(row(), ["boxes"], coords="qwen2_5")


def test_png_bytes_and_pil_image_are_the_same_pixels() -> None:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG")
    sample = make_sample(row(images=[{"bytes": buffer.getvalue(), "path": None}]), [])
    assert sample.plain.images[0].tobytes() == IMAGE.tobytes()


def test_the_example_photographs_make_good_samples() -> None:
    samples, skipped = make_samples(read_rows(PHOTOS), EVERYTHING)
    assert skipped == []
    assert len(samples) == 8
    assert [len(sample.plain.images) for sample in samples] == [1] * 7 + [2]
    for sample in samples:
        assert max(sample.plain.images[0].size) <= 448
        assert sample.privileged.images[-1].tobytes() != sample.plain.images[-1].tobytes()
        assert all(name + ":" in sample.privileged.context for name in ("boxes", "hints"))


class Careless:
    """A type of someone else's that asks for nothing and checks nothing."""

    def parse(self, raw, sizes):
        return [entry["from"] for entry in raw or []]

    def describe(self, value, frame):
        return {"text": "a", "list": ["a"], "deep": 1 / 0 if value == ["deep"] else ""}[value[0]]

    def draw(self, images, value):
        return {"text": images, "list": images[:-1], "deep": images}[value[0]]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([{"to": 1}], "KeyError: 'from'"),
        (7, "TypeError: 'int' object is not iterable"),
        ([{"from": "none"}], "KeyError: 'none'"),
        ([{"from": "deep"}], "ZeroDivisionError"),
        ([{"from": "list"}], "draw() must give at least 1 PIL images, got []"),
    ],
)
def test_whatever_a_type_raises_names_the_type_and_the_row(raw, reason, monkeypatch) -> None:
    monkeypatch.setitem(TYPES, "careless", Careless())
    samples, (bad,) = make_samples([row(annotations={"careless": raw})], [("careless", "both")])
    assert not samples
    assert bad.reason.startswith("row 'r1': annotations.careless: ")
    assert reason in bad.reason
