"""Coordinates: exact values per family, and the round trip within half a cell."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import fetch_image
from qwen_vl_utils.vision_process import smart_resize as utils_resize
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as hf_resize

from dopd_vlm.data.coords import FAMILIES, Frame, cell_size, decode, encode, resized_size
from dopd_vlm.data.images import MAX_ASPECT
from dopd_vlm.data.views import make_sample

PHOTO = Path(__file__).parents[1] / "data" / "assets" / "photos" / "coffee.jpg"

sides = st.integers(1, 5000)


def test_each_family_writes_its_own_numbers() -> None:
    box = (80.0, 30.0, 240.0, 120.0)
    written = {
        family: encode(box, Frame(family=family, size=(320, 150), resized=(308, 140)))
        for family in FAMILIES
    }
    assert written == {
        "qwen2": [250, 200, 750, 800],
        "qwen2_5": [77, 28, 231, 112],
        "qwen3": [250, 200, 750, 800],
        "norm1": [0.25, 0.2, 0.75, 0.8],
        "pixel": [80, 30, 240, 120],
    }


@given(st.sampled_from(FAMILIES), sides, sides, sides, sides, st.floats(0, 1), st.floats(0, 1))
def test_a_place_comes_back_within_half_a_cell(family, w, h, rw, rh, x, y) -> None:
    frame = Frame(family=family, size=(w, h), resized=(rw, rh))
    back = decode(encode((x * w, y * h), frame), frame)
    for axis, value in enumerate((x * w, y * h)):
        assert abs(back[axis] - value) <= cell_size(frame)[axis] * (0.5 + 1e-6)


def test_numbers_of_relative_families_stay_in_range() -> None:
    frame = Frame(family="qwen3", size=(7, 3))
    assert encode((0, 0, 7, 3), frame) == [0, 0, 1000, 1000]


def test_qwen2_5_refuses_to_guess_the_resized_size() -> None:
    with pytest.raises(ValueError, match=r"resized image.*resize="):
        Frame(family="qwen2_5", size=(10, 20))


def test_an_unknown_family_names_the_near_ones() -> None:
    with pytest.raises(ValueError, match=r"'qwen25'; near: .*qwen2_5"):
        Frame(family="qwen25", size=(10, 20))


def test_the_resized_size_is_that_of_the_processor_call() -> None:
    from transformers import Qwen2VLImageProcessorPil

    class Processor:
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
        )

    image = Image.new("RGB", (211, 97))
    width, height = resized_size(Processor(), image)
    pixels = Processor.image_processor(images=[image], return_tensors="np")["pixel_values"]
    assert width % 32 == height % 32 == 0
    assert pixels.shape[0] == width * height // 16**2
    assert width > height


QWEN3_VL = {"shortest_edge": 256 * 32 * 32, "longest_edge": 1280 * 32 * 32}


def image_processor(patch_size=16, limits=QWEN3_VL):
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(patch_size=patch_size, size=limits)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([14, 16]))
def test_both_libraries_resize_alike_wherever_images_are_accepted(
    width, height, patch_size
) -> None:
    """Beyond MAX_ASPECT they may not, which is why such images are refused."""
    limits = {"min_pixels": QWEN3_VL["shortest_edge"], "max_pixels": QWEN3_VL["longest_edge"]}
    assume(max(width, height) <= MAX_ASPECT * min(width, height))
    theirs = utils_resize(height, width, 2 * patch_size, **limits)
    ours = hf_resize(height, width, factor=2 * patch_size, **limits)
    assert theirs == ours


@pytest.mark.parametrize("size", [(640, 480), (21, 13), (3, 60), (1800, 90), (2200, 1700)])
def test_parity_with_qwen_vl_utils_at_patch_16_pixel_for_pixel(size) -> None:
    image = Image.open(PHOTO).convert("RGB").resize(size)
    made = image_processor()
    fetched = fetch_image(
        {"image": image, "min_pixels": QWEN3_VL["shortest_edge"],
         "max_pixels": QWEN3_VL["longest_edge"]},
        image_patch_size=16,
    )  # fmt: skip
    ours = made(images=[image], return_tensors="pt")
    theirs = made(images=[fetched], do_resize=False, return_tensors="pt")
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(7, 5), (640, 427), (90, 1800), (2600, 1900)])
def test_a_box_on_an_exif_rotated_image_comes_back_within_half_a_cell(
    tmp_path, family, size
) -> None:
    """The row's box is in pixels of the upright image; the text is read back by `decode`."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown turned by 90 degrees
    Image.new("RGB", size[::-1]).save(tmp_path / "turned.jpg", exif=exif)
    width, height = size
    box = [width * 0.21, height * 0.33, width * 0.4, height * 0.5]
    row = {"uid": "x", "images": ["turned.jpg"], "question": "?",
           "annotations": {"boxes": [{"bbox": box}]}}  # fmt: skip
    holder = SimpleNamespace(image_processor=image_processor())
    resize = partial(resized_size, holder)
    sample = make_sample(row, ["boxes"], root=tmp_path, coords=family, resize=resize)
    (image,) = sample.plain.images
    assert image.size == size
    frame = Frame(family=family, size=size, resized=resize(image))
    written = json.loads(sample.privileged.context.split("\n")[1])[0]["bbox_2d"]
    upright = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    cells = cell_size(frame) * 2
    for found, true, cell in zip(decode(written, frame), upright, cells, strict=True):
        assert abs(found - true) <= 0.5 * cell + 1e-9
