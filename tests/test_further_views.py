"""Views beside plain and privileged: what each holds, and that none reaches the student's plain prompt."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny

from dopd_vlm.config import MethodConfig, read_config
from dopd_vlm.data.further_views import IRRELEVANT, VIEWS, with_views
from dopd_vlm.data.views import make_sample
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.wiring.samples import further_views, training_samples
from dopd_vlm.types import Sample

MAKE = partial(make_sample, annotations=["boxes"], coords="pixel")
RECIPES = Path(__file__).parents[1] / "scripts" / "recipes"


def row(uid: str, *labels: str) -> dict:
    boxes = [{"bbox": [2 + 3 * n, 3, 9, 8], "label": label} for n, label in enumerate(labels)]
    return {
        "uid": uid, "images": [tiny.image(48, 32, seed=len(labels))], "question": "what is it ?", "answer": "cup",
        "annotations": {"boxes": boxes},
    }  # fmt: skip


ROWS = [row("a", "cup", "mug", "jug"), row("same", "cup", "mug", "jug"), row("b", "hat", "fez")]


def sample(*names: str, index: int = 0) -> Sample:
    return with_views(MAKE(ROWS[index]), names, ROWS, index, MAKE)


def test_partial_holds_a_part_of_the_annotations_and_no_word_of_the_rest():
    view = sample("partial").view("partial")
    assert "cup" in view.context and "jug" in view.context and "mug" not in view.context


def test_partial_leaves_out_ready_text():
    rows = [{**ROWS[0], "privileged_context": "secret"}]
    one = with_views(MAKE(rows[0]), ["partial"], rows, 0, MAKE)
    assert "secret" in one.privileged.context and "secret" not in one.view("partial").context


def test_wrong_is_another_row_s_annotations_over_this_row_s_images():
    one = sample("wrong")
    assert one.view("wrong").context == MAKE(ROWS[2]).privileged.context  # row 1 says the same
    assert one.view("wrong").images == one.plain.images
    assert sample("wrong", index=2).view("wrong").context == MAKE(ROWS[0]).privileged.context


def test_wrong_without_another_text_is_refused():
    with pytest.raises(ValueError, match=r"'a'.*'wrong' needs another row.*data.annotations"):
        with_views(MAKE(ROWS[0]), ["wrong"], ROWS[:2], 0, MAKE)


def test_erased_and_degraded_show_less_at_the_same_size():
    one = sample("erased", "degraded")
    (image,) = one.plain.images
    (grey,), (poor,) = one.view("erased").images, one.view("degraded").images
    assert grey.size == poor.size == image.size
    assert [low == high for low, high in grey.getextrema()] == [True] * 3

    def spread(pixels):
        return sum(high - low for low, high in pixels.getextrema())

    assert 0 < spread(poor) < spread(image)
    assert not one.view("erased").context and not one.view("degraded").context


def test_irrelevant_says_nothing_of_the_row():
    view = sample("irrelevant").view("irrelevant")
    assert view.context == IRRELEVANT and "cup" not in view.context


@pytest.mark.parametrize("name", VIEWS)
def test_no_view_changes_what_the_student_sees(name):
    """The plain prompt, its images to the byte, and the privileged one are those without the view."""
    before = MAKE(ROWS[0])
    pixels = [image.tobytes() for image in before.plain.images]
    after = with_views(before, [name], ROWS, 0, MAKE)
    assert [image.tobytes() for image in after.plain.images] == pixels
    ours, theirs = build_prompts(before), build_prompts(after)
    assert ours.plain == theirs.plain and ours.privileged == theirs.privileged
    assert after.plain == before.plain and set(after.views) == {name}


NEEDS = {
    "dopd": (),
    "rlcsd": ("wrong",),
    "ar_opd": ("partial",),
    "va_opd": ("degraded",),
    "s2vopd": ("degraded",),
}


def test_a_recipe_s_rows_get_the_views_of_its_method_and_no_other():
    config = read_config(RECIPES / "demo.yaml")
    for name, views in NEEDS.items():
        assert further_views(replace(config, method=MethodConfig(name=name))) == views
    samples = training_samples(replace(config.data, limit=40), views=("wrong", "degraded"))
    assert set(samples[0].views) == {"wrong", "degraded"}
    with pytest.raises(ValueError, match=r"unknown view 'wrnog'; near: wrong"):
        training_samples(config.data, views=["wrnog"])
