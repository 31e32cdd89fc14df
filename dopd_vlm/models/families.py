"""What differs between model families: one record each. A new family is a new record (ADD_A_FAMILY.md).

The rest of the code knows a family's model through this record alone: which inputs its processor makes besides
token ids and pixels, how many tokens an image becomes, how positions are counted, which numbers it writes for
places in an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from dopd_vlm.errors import near

CountImageTokens = Callable[[Any, Mapping[str, Tensor]], int]
"""(processor, the image tensors of a prompt) -> image tokens that they fill. At the top of a module or a partial of
such a function: it goes to worker processes."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the code has to know of a model family."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` in config.json; empty for the record of all text models."""
    count_image_tokens: CountImageTokens | None = None
    """None trusts the processor, which then refuses a wrong number itself."""
    token_inputs: tuple[str, ...] = ()
    """Inputs with one entry per token that the processor makes besides input_ids; 0 at text."""
    has_3d_positions: bool = False
    """Whether image tokens stand on time, height and width (`get_rope_index`)."""
    marker_ids: tuple[str, ...] = ("image_token_id",)
    """Config fields with ids that stand for images; they are never sampled."""
    coords: tuple[str, ...] = ()
    """Names of data/coords.py for the numbers that its models write for places in an image; empty where none
    are known, and any will do."""
    can_share_prompts: bool = True
    """Whether a completion may read the keys and values of its prompt's own forward."""


def _merged_patches(processor: Any, tensors: Mapping[str, Tensor]) -> int:
    merge = processor.image_processor.merge_size
    return int(tensors["image_grid_thw"].prod(-1).sum()) // merge**2


def _tokens_of_tiles(
    processor: Any, tensors: Mapping[str, Tensor], *, length: str, axis: int
) -> int:
    """So many tokens a tile; `length` names the processor's field, `axis` counts the tiles."""
    return int(tensors["pixel_values"].shape[axis]) * int(getattr(processor, length))


QWEN_MARKERS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


PER_MILLE = ("qwen2", "qwen3")
"""Two names for the same numbers, 0..1000."""


def _qwen(name: str, model_types: tuple[str, ...], coords: tuple[str, ...]) -> Family:
    return Family(
        name=name,
        model_types=model_types,
        count_image_tokens=_merged_patches,
        token_inputs=("mm_token_type_ids",),
        has_3d_positions=True,
        marker_ids=QWEN_MARKERS,
        coords=coords,
    )


FAMILIES: tuple[Family, ...] = (
    _qwen("Qwen2-VL", ("qwen2_vl",), PER_MILLE),
    _qwen("Qwen2.5-VL", ("qwen2_5_vl",), ("qwen2_5",)),
    _qwen("Qwen3-VL", ("qwen3_vl", "qwen3_vl_moe"), PER_MILLE),
    Family(
        name="InternVL3",
        model_types=("internvl",),
        count_image_tokens=partial(_tokens_of_tiles, length="image_seq_length", axis=0),
        coords=PER_MILLE,
    ),
    Family(
        name="Gemma 3",
        model_types=("gemma3",),
        count_image_tokens=partial(_tokens_of_tiles, length="image_seq_length", axis=0),
        # Image tokens see each other in both directions; without these the model is causal everywhere.
        token_inputs=("token_type_ids",),
        marker_ids=("image_token_id", "boi_token_id", "eoi_token_id"),
        can_share_prompts=False,
    ),
    Family(
        name="LLaVA-OneVision",
        model_types=("llava_onevision",),
        coords=("norm1",),
        marker_ids=("image_token_id", "video_token_id"),
    ),
    Family(
        name="SmolVLM",
        model_types=("smolvlm", "idefics3"),
        # Its images are in one row of the batch, tile after tile.
        count_image_tokens=partial(_tokens_of_tiles, length="image_seq_len", axis=1),
    ),
)
"""Families of vision-language models that are tested, tests/test_families.py."""

TEXT = Family(name="text", model_types=(), marker_ids=())
"""All models without images."""


def is_visual(config: PretrainedConfig) -> bool:
    """Whether the architecture reads images."""
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def family_of(config: PretrainedConfig) -> Family:
    """The record of a model's family.

    Raises:
        ValueError: a vision-language model without a record, or an architecture that is no language model.
    """
    kind = config.model_type
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    if is_visual(config):
        known = [one for family in FAMILIES for one in family.model_types]
        likely = f"near: {', '.join(near(kind, known))}; " if near(kind, known) else ""
        raise ValueError(
            f"model type {kind!r} has no record in dopd_vlm/models/families.py, which says how many tokens its "
            f"images become and which inputs its processor makes; {likely}known: {', '.join(known)}. "
            "Write one: dopd_vlm/models/ADD_A_FAMILY.md; "
            "from outside, append it to dopd_vlm.models.families.FAMILIES by `register`"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"model type {kind!r} is neither a causal nor a vision-language model")
    return TEXT


def register(family: Family) -> Family:
    """Adds a record, before those that are there.

    Raises:
        ValueError: one of its model types has a record.
    """
    global FAMILIES
    taken = {one for other in FAMILIES for one in other.model_types} & set(family.model_types)
    if taken:
        raise ValueError(f"family {family.name!r}: {', '.join(sorted(taken))} has a record already")
    FAMILIES = (family, *FAMILIES)
    return family
