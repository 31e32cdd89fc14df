"""The processor's own resize and qwen-vl-utils agree, token for token and pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import fetch_image
from tiny import image, processor
from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from dopd_vlm.data.coords import resized_size
from dopd_vlm.data.questions import PLACEHOLDER
from dopd_vlm.data.videos import Clip

PHOTO = Path(__file__).parents[1] / "data" / "assets" / "photos" / "coffee.jpg"
TWO_GREY_LEVELS = 2 / 255 / 0.26
"""Of normalised pixels (the smallest standard deviation is 0.261): rounding of two resizers."""
SIZES = [(48, 36), (33, 200), (320, 17), (21, 18), (500, 400), (16, 16), (211, 97)]


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_of_resizing_give_the_same_inputs(size) -> None:
    made = processor()
    photo = Image.open(PHOTO).convert("RGB").resize(size)
    image_processor = made.image_processor
    limits = image_processor.size
    fetched = fetch_image(
        {
            "image": photo,
            "min_pixels": limits["shortest_edge"],
            "max_pixels": limits["longest_edge"],
        },
        image_patch_size=image_processor.patch_size,
    )
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": photo}, {"type": "text", "text": "?"}],
        }
    ]
    text = made.apply_chat_template(messages, tokenize=False)
    ours = made(text=[text], images=[photo], return_tensors="pt")
    theirs = made(text=[text], images=[fetched], do_resize=False, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert resized_size(made, photo) == fetched.size
    difference = (ours["pixel_values"] - theirs["pixel_values"]).abs().max()
    assert difference <= TWO_GREY_LEVELS


def test_a_clip_is_qwen3_vl_s_own_video_with_every_frame_shown_twice() -> None:
    """Its video tokens merge two frames; ours, as images, keep each. So the same tokens come out,
    `image_pad` for `video_pad`, and the same pixels, when each frame of the video is given twice."""
    images = processor()
    made = Qwen3VLProcessor(
        image_processor=images.image_processor,
        tokenizer=images.tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            patch_size=8, merge_size=2, image_mean=images.image_processor.image_mean,
            image_std=images.image_processor.image_std,
        ),
        chat_template=images.chat_template,
    )  # fmt: skip
    clip = Clip(frames=tuple(image(64, 48, seed) for seed in range(3)), seconds=(0.0, 1.0, 1.9))
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    ours = made(
        text=[f"What {clip.text.replace(PLACEHOLDER, shown)}?"],
        images=list(clip.frames),
        do_resize=False,
        return_tensors="pt",
    )
    twice = np.stack([np.asarray(frame).transpose(2, 0, 1) for frame in clip.frames for _ in "ab"])
    indices = [round(10 * time) for time in clip.seconds for _ in "ab"]
    about = VideoMetadata(
        total_num_frames=30, fps=10.0, frames_indices=indices, width=64, height=48, duration=3.0
    )
    # Without the template's vision tokens around the whole video: the processor sets its own.
    theirs = made(
        text=["What <|video_pad|>?"], videos=[twice], video_metadata=[about], do_sample_frames=False,
        do_resize=False, return_tensors="pt",
    )  # fmt: skip
    image_pad, video_pad = made.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    ids = torch.where(ours["input_ids"] == image_pad, video_pad, ours["input_ids"])
    assert torch.equal(ids, theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values_videos"])
    assert theirs["video_grid_thw"].tolist() == [[3, 6, 8]]
