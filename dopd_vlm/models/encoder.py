"""Chat messages and completion ids -> model inputs.

Shapes: U prompts of P tokens, B completions of T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dopd_vlm.models.images import APART, PictureProcessor
from dopd_vlm.models.policy import Policy
from dopd_vlm.types import Message

TOKEN_INPUTS = ("input_ids", "mm_token_type_ids")
"""Inputs with one entry per token; the others hold pictures and are concatenated."""


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One rendered prompt: its ids and the processor's picture tensors."""

    uid: str
    text: str
    """The prompt as the chat template rendered it."""
    input_ids: Tensor
    """int64 [P]."""
    token_types: Tensor | None
    """int64 [P], 1 at image tokens; None for models that do not ask for it."""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """pixel_values and image_grid_thw as the processor returned them; empty without pictures."""
    picture_keys: tuple[str, ...] = ()
    """One a picture, equal for equal pixels; empty where the processor does not keep pictures apart."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B completions behind U prompts, as tensors."""

    prompts: dict[str, Tensor]
    """Token inputs [U, P], padded on the left: each prompt once where it is shared."""
    sources: tuple[EncodedPrompt, ...]
    """The U prompts, which hold the pictures: `features.picture_inputs` takes them from here."""
    owner: Tensor
    """int64 [B] into U: whose completion it is."""
    completion_ids: Tensor
    """int64 [B, T], pad id where masked."""
    mask: Tensor
    """bool [B, T], built with the ids: EOS counts even where pad and EOS share an id."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(
            prompts={name: tensor.to(device) for name, tensor in self.prompts.items()},
            sources=self.sources,
            owner=self.owner.to(device),
            completion_ids=self.completion_ids.to(device),
            mask=self.mask.to(device),
        )


def encode_prompt(
    policy: Policy,
    messages: Sequence[Message],
    *,
    uid: str = "",
    template_kwargs: Mapping[str, Any] | None = None,
    pictures: PictureProcessor | None = None,
) -> EncodedPrompt:
    """One prompt up to where the completion begins; the template adds every special token, the tokenizer none.

    `pictures` is shared by prompts that may show the same pictures.
    Raises ValueError naming the uid when image tokens and picture features do not agree in number.
    """
    text = policy.processor.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, **(template_kwargs or {})
    )
    return encode_text(policy, text, _images(messages), uid=uid, pictures=pictures)


def encode_text(
    policy: Policy,
    text: str,
    images: Sequence[Any] = (),
    *,
    uid: str = "",
    add_special_tokens: bool = False,
    pictures: PictureProcessor | None = None,
) -> EncodedPrompt:
    """A rendered prompt with its pictures, in the order of the marks in the text.

    Raises ValueError as `encode_prompt` does.
    """
    processor = policy.processor
    if images and processor is policy.tokenizer:
        raise ValueError(
            f"sample {uid!r} has {len(images)} picture(s), but {policy.path!r} is a text-only model"
        )
    visual = {"images": list(images)} if images else {}
    if images:
        pictures = pictures or PictureProcessor(processor.image_processor)
        processor = pictures.inside(processor)
    encoded = processor(
        text=[text], add_special_tokens=add_special_tokens, return_tensors="pt", **visual
    )
    others = (*TOKEN_INPUTS, "attention_mask", "token_type_ids")
    made = {name: value for name, value in encoded.items() if name not in others}
    keys = [pictures.key(image) for image in images] if pictures and set(made) == APART else []
    prompt = EncodedPrompt(
        uid=uid,
        text=text,
        input_ids=encoded["input_ids"][0],
        token_types=encoded["mm_token_type_ids"][0] if "mm_token_type_ids" in encoded else None,
        pictures=made,
        picture_keys=tuple(keys),
    )
    _check_image_tokens(policy, prompt)
    return prompt


def _images(messages: Sequence[Message]) -> list[Any]:
    blocks = [
        block for turn in messages if isinstance(turn["content"], list) for block in turn["content"]
    ]
    return [block["image"] for block in blocks if block["type"] == "image"]


def _check_image_tokens(policy: Policy, prompt: EncodedPrompt) -> None:
    image_id = getattr(policy.model.config, "image_token_id", None)
    if image_id is None:
        return
    tokens = int((prompt.input_ids == image_id).sum())
    grid = prompt.pictures.get("image_grid_thw")
    merge = getattr(getattr(policy.processor, "image_processor", None), "merge_size", 1)
    features = 0 if grid is None else int(grid.prod(-1).sum()) // merge**2
    if tokens != features:
        raise ValueError(
            f"sample {prompt.uid!r}: the prompt has {tokens} image tokens but its pictures give {features} features; "
            "is an image token written in the text of the row?"
        )


def collate(
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Tensor],
    *,
    pad_id: int,
    share: bool = True,
) -> Batch:
    """Completions [T] and, in the same order, the prompts that they follow verbatim.

    A prompt object that comes more than once is put into the batch once, unless `share` is off.
    Each prompt keeps its own length, so plain and privileged batches of the same completions align
    by offset, never by absolute position.
    """
    keys = [id(p) if share else row for row, p in enumerate(prompts)]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    rows = sorted(first.values())
    sources = tuple(prompts[row] for row in rows)
    index = {keys[row]: place for place, row in enumerate(rows)}
    completion_ids = pad_sequence(list(completions), True, pad_id)
    num_tokens = torch.tensor([len(c) for c in completions])
    return Batch(
        prompts=pad_prompts(sources, pad_id=pad_id),
        sources=sources,
        owner=torch.tensor([index[key] for key in keys]),
        completion_ids=completion_ids,
        mask=torch.arange(completion_ids.shape[1]) < num_tokens[:, None],
    )


def pad_prompts(prompts: Sequence[EncodedPrompt], *, pad_id: int) -> dict[str, Tensor]:
    """Token inputs [U, P] of prompts, padded on the left; `features.picture_inputs` has the others."""
    ids = [p.input_ids for p in prompts]
    inputs = {
        "input_ids": pad_sequence(ids, True, pad_id, "left"),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0, "left"),
    }
    types = [p.token_types for p in prompts if p.token_types is not None]
    if len(types) == len(prompts):
        inputs["mm_token_type_ids"] = pad_sequence(types, True, 0, "left")
    return inputs
