"""Architectures of models whose files are not at hand, and prompts as long as theirs would be.

Only sizes matter here: a memory report needs no weights, no tokenizer and no network. Sizes are those of
the published config.json files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from transformers import PretrainedConfig, Qwen3Config, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from dopd_vlm.config import RunConfig
from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import Message, Sample, ViewName

CHARACTERS_A_TOKEN = 3.0
"""English has about 4; coordinates and digits less."""
TEMPLATE_TOKENS = 8
"""Of a chat template around one message."""
PIXELS = (65_536, 16_777_216)
"""Least and most pixels of an image as Qwen3-VL's processor resizes it."""
VOCABULARY = 151_936
IMAGE, VISION_START, VISION_END = 151_655, 151_652, 151_653


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """A Qwen3 decoder; head size 128, 8 key-value heads."""

    hidden: int
    inner: int
    layers: int
    heads: int
    tied: bool

    def fields(self) -> dict[str, Any]:
        """As config.json says it."""
        return {
            "vocab_size": VOCABULARY, "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": self.tied,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """A Qwen3-VL vision tower; 16 heads, patches of 16 pixels, 2 x 2 of them a token."""

    hidden: int
    inner: int
    depth: int
    deepstack: tuple[int, ...]

    def fields(self, out: int) -> dict[str, Any]:
        """As config.json says it."""
        return {
            "hidden_size": self.hidden, "intermediate_size": self.inner, "depth": self.depth,
            "num_heads": 16, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 2304, "out_hidden_size": out,
            "deepstack_visual_indexes": list(self.deepstack),
        }  # fmt: skip


SMALL_TOWER = VisionShape(hidden=1024, inner=4096, depth=24, deepstack=(5, 11, 17))
LARGE_TOWER = VisionShape(hidden=1152, inner=4304, depth=27, deepstack=(8, 16, 24))
S_0_6B = TextShape(hidden=1024, inner=3072, layers=28, heads=16, tied=True)
S_1_7B = TextShape(hidden=2048, inner=6144, layers=28, heads=16, tied=True)
S_4B = TextShape(hidden=2560, inner=9728, layers=36, heads=32, tied=True)
S_8B = TextShape(hidden=4096, inner=12288, layers=36, heads=32, tied=False)

KNOWN: Mapping[str, tuple[TextShape, VisionShape | None]] = {
    "Qwen/Qwen3-0.6B": (S_0_6B, None),
    "Qwen/Qwen3-1.7B": (S_1_7B, None),
    "Qwen/Qwen3-4B": (S_4B, None),
    "Qwen/Qwen3-8B": (S_8B, None),
    "Qwen/Qwen3-VL-2B-Instruct": (S_1_7B, SMALL_TOWER),
    "Qwen/Qwen3-VL-4B-Instruct": (S_4B, SMALL_TOWER),
    "Qwen/Qwen3-VL-8B-Instruct": (S_8B, LARGE_TOWER),
}


def known_model(path: str) -> tuple[PretrainedConfig, Any] | None:
    """Architecture of a known hub id, without its processor; None where files are at hand or unknown."""
    if path not in KNOWN or Path(path).is_dir():
        return None
    if isinstance(try_to_load_from_cache(path, "config.json"), str):
        return None
    text, vision = KNOWN[path]
    if vision is None:
        return Qwen3Config(**text.fields()), None
    architecture = Qwen3VLConfig(
        text_config=text.fields(),
        vision_config=vision.fields(text.hidden),
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=text.tied,
    )
    return architecture, None


def estimated_views(
    config: RunConfig, sample: Sample, views: Sequence[ViewName] = ("plain", "privileged")
) -> dict[ViewName, EncodedPrompt]:
    """Those views' prompts with the lengths that the text's characters and the images' pixels make likely."""
    pair = build_prompts(sample, config.prompts)
    return {view: _estimated(pair.view(view), sample.uid) for view in views}


def _estimated(messages: list[Message], uid: str) -> EncodedPrompt:
    ids: list[int] = []
    grids: list[tuple[int, int, int]] = []
    for message in messages:
        ids += [0] * TEMPLATE_TOKENS
        content = message["content"]
        for block in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if block["type"] == "image":
                grids.append(_grid(block["image"]))
                ids += [VISION_START, *[IMAGE] * (grids[-1][1] * grids[-1][2] // 4), VISION_END]
            else:
                ids += [0] * (1 + int(len(block["text"]) / CHARACTERS_A_TOKEN))
    input_ids = torch.tensor(ids)
    return EncodedPrompt(
        uid=uid,
        text="",
        input_ids=input_ids,
        token_inputs={"mm_token_type_ids": (input_ids == IMAGE).long()} if grids else {},
        image_tensors=_image_tensors(grids),
        image_keys=tuple(f"{uid}/{place}" for place in range(len(grids))),
    )


def _grid(image: Image.Image) -> tuple[int, int, int]:
    """Frames, rows and columns of patches."""
    least, most = PIXELS
    height, width = smart_resize(image.height, image.width, 32, least, most)
    return 1, height // 16, width // 16


def _image_tensors(grids: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    if not grids:
        return {}
    grid = torch.tensor(grids)
    patches = int(grid.prod(-1).sum())
    return {
        "pixel_values": torch.empty(patches, 3 * 2 * 16 * 16, device="meta"),
        "image_grid_thw": grid,
    }
