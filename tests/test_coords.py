"""Coordinates: exact values per family, and the round trip within half a cell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.data.coords import FAMILIES, Frame, cell_size, decode, encode, resized_size

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
    with pytest.raises(ValueError, match=r"resized picture.*resize="):
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
