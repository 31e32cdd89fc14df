"""The processor's own resize and qwen-vl-utils agree, token for token and pixel for pixel."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from qwen_vl_utils import fetch_image
from tiny import processor

from dopd_vlm.data.coords import resized_size

PHOTO = Path(__file__).parents[1] / "data" / "assets" / "photos" / "coffee.jpg"
TWO_GREY_LEVELS = 2 / 255 / 0.26
"""Of normalised pixels (the smallest standard deviation is 0.261): rounding of two resizers."""
SIZES = [(48, 36), (33, 200), (320, 17), (21, 18), (500, 400), (16, 16), (211, 97)]


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_of_resizing_give_the_same_inputs(size) -> None:
    made = processor()
    image = Image.open(PHOTO).convert("RGB").resize(size)
    image_processor = made.image_processor
    limits = image_processor.size
    fetched = fetch_image(
        {
            "image": image,
            "min_pixels": limits["shortest_edge"],
            "max_pixels": limits["longest_edge"],
        },
        image_patch_size=image_processor.patch_size,
    )
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}],
        }
    ]
    text = made.apply_chat_template(messages, tokenize=False)
    ours = made(text=[text], images=[image], return_tensors="pt")
    theirs = made(text=[text], images=[fetched], do_resize=False, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert resized_size(made, image) == fetched.size
    difference = (ours["pixel_values"] - theirs["pixel_values"]).abs().max()
    assert difference <= TWO_GREY_LEVELS
