"""Chat messages and completion ids -> model inputs.

Shapes: U prompts of P tokens, B completions of T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from dopd_vlm.models.chat import images_of, render, texts
from dopd_vlm.models.families import Family
from dopd_vlm.models.images import APART, CachedImageProcessor
from dopd_vlm.types import Message

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What processors make with one entry a token; the rest holds images."""


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One rendered prompt: its ids and the processor's image tensors."""

    uid: str
    text: str
    """The prompt as the chat template rendered it."""
    input_ids: Tensor
    """int64 [P]."""
    token_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """The family's further inputs with one entry a token, int64 [P]."""
    image_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """pixel_values and what else the processor made of the images; empty without images."""
    image_keys: tuple[str, ...] = ()
    """One an image, equal for equal pixels; empty where the processor does not keep images apart."""
    images: tuple[Any, ...] = ()
    """The images themselves, for engines with a processor of their own."""
    number: int = 0
    """Keeps apart the draws of prompts with one uid: the place in the step's batch, an answer's number."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B completions after U prompts, as tensors."""

    prompts: dict[str, Tensor]
    """Token inputs [U, P], padded on the left: each prompt once where it is shared."""
    sources: tuple[EncodedPrompt, ...]
    """The U prompts, which hold the images: `image_features.image_inputs` takes them from here."""
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


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Makes a model's inputs from text and images, without the model."""

    processor: Any
    """A ProcessorMixin for vision-language models, the tokenizer itself for text-only ones."""
    family: Family
    image_token_id: int | None
    """The id of one piece of an image; None for text-only models."""
    path: str
    """Where the model was loaded from, for messages."""
    context: int | None = None
    """Tokens of a sequence that the model was made for; None where its configuration is silent."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        is_tokenizer = isinstance(self.processor, PreTrainedTokenizerBase)
        return self.processor if is_tokenizer else self.processor.tokenizer

    def image_cache(self) -> CachedImageProcessor | None:
        """What `encode_prompt` takes for prompts that may show the same images; None without an image processor."""
        is_visual = self.processor is not self.tokenizer
        return CachedImageProcessor(self.processor.image_processor) if is_visual else None


def encode_prompt(
    encoder: Encoder,
    messages: Sequence[Message],
    *,
    uid: str = "",
    template_kwargs: Mapping[str, Any] | None = None,
    image_cache: CachedImageProcessor | None = None,
) -> EncodedPrompt:
    """One prompt up to where the completion begins; the template adds every special token, the tokenizer none.

    `image_cache` is shared by prompts that may show the same images.
    Raises ValueError naming the uid when a turn's text holds one of the tokenizer's special tokens,
    when the chat template refuses or loses a turn, when image tokens and image features do not agree
    in number, or when the prompt is longer than the model's context.
    """
    check_texts(encoder.tokenizer, messages, uid, encoder.path)
    try:
        text = render(encoder.processor, messages, template_kwargs=template_kwargs)
    except ValueError as error:
        raise ValueError(f"sample {uid!r}: {error} (model {encoder.path!r})") from error
    prompt = encode_text(encoder, text, images_of(messages), uid=uid, image_cache=image_cache)
    if encoder.context is not None and len(prompt.input_ids) > encoder.context:
        raise ValueError(
            f"sample {uid!r}: a prompt of {len(prompt.input_ids)} tokens, the context of "
            f"{encoder.path!r} has {encoder.context}"
        )
    return prompt


def encode_text(
    encoder: Encoder,
    text: str,
    images: Sequence[Any] = (),
    *,
    uid: str = "",
    add_special_tokens: bool = False,
    image_cache: CachedImageProcessor | None = None,
) -> EncodedPrompt:
    """A rendered prompt with its images, in the order of the marks in the text.

    Raises ValueError as `encode_prompt` does.
    """
    _check_marks(encoder, text, len(images), uid)
    processor = encoder.processor
    visual = {"images": list(images)} if images else {}
    if images:
        image_cache = image_cache or CachedImageProcessor(processor.image_processor)
        processor = image_cache.inside(processor)
    encoded = processor(
        text=[text], add_special_tokens=add_special_tokens, return_tensors="pt", **visual
    )
    tensors = {
        name: value for name, value in encoded.items() if images and name not in TOKEN_INPUTS
    }
    keys = [image_cache.key(image) for image in images] if image_cache else []
    prompt = EncodedPrompt(
        uid=uid,
        text=text,
        input_ids=encoded["input_ids"][0],
        token_inputs={
            name: encoded[name][0] for name in encoder.family.token_inputs if name in encoded
        },
        image_tensors=tensors,
        image_keys=tuple(keys) if set(tensors) == APART else (),
        images=tuple(images),
    )
    _check_image_tokens(encoder, prompt)
    return prompt


def check_texts(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], uid: str, path: str
) -> None:
    """The template writes special tokens; in a row's text they would be read as turns or images.

    Raises ValueError naming the sample, the token and the model at `path`.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    special = [token for token in {*tokenizer.all_special_tokens, *added} if token]
    for turn in messages:
        for token in special:
            if any(token in text for text in texts(turn)):
                raise ValueError(
                    f"sample {uid!r}: its text holds {token!r}, a special token of {path!r}: "
                    "write it in other words"
                )


def _check_marks(encoder: Encoder, text: str, num_images: int, uid: str) -> None:
    """One mark of the template's for each image, and none that a row wrote."""
    if encoder.processor is encoder.tokenizer:
        if num_images:
            raise ValueError(
                f"sample {uid!r} has {num_images} image(s), but {encoder.path!r} is a text-only model"
            )
        return
    mark = encoder.processor.image_token
    if text.count(mark) != num_images:
        raise ValueError(
            f"sample {uid!r}: the prompt has {text.count(mark)} marks {mark!r} for {num_images} images; "
            "is an image token written in the text of the row?"
        )


def _check_image_tokens(encoder: Encoder, prompt: EncodedPrompt) -> None:
    count, features = encoder.family.count_image_tokens, 0
    if encoder.image_token_id is None or (count is None and prompt.images):
        return
    tokens = int((prompt.input_ids == encoder.image_token_id).sum())
    if count is not None and prompt.image_tensors:
        features = count(encoder.processor, prompt.image_tensors)
    if tokens != features:
        raise ValueError(
            f"sample {prompt.uid!r}: the prompt has {tokens} image tokens but its images give {features} features; "
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
    """Token inputs [U, P] of prompts, padded on the left; `image_features.image_inputs` has the others."""
    ids = [p.input_ids for p in prompts]
    inputs = {
        "input_ids": pad_sequence(ids, True, pad_id, "left"),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0, "left"),
    }
    for name in sorted({name for p in prompts for name in p.token_inputs}):
        rows = [p.token_inputs.get(name, torch.zeros_like(p.input_ids)) for p in prompts]
        inputs[name] = pad_sequence(rows, True, 0, "left")
    return inputs
