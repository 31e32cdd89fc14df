"""One completion to be made, and the key under which its result is kept."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import Message, Sample, Sampling, ViewName

from ..benchmarks.benchmark import Benchmark

if TYPE_CHECKING:
    import torch

    from dopd_vlm.models.policy import Policy

STRIDED = 4096
"""Values of each weight that enter the fingerprint one by one."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion of one question."""

    doc_id: int
    """Position among the benchmark's samples."""
    uid: str
    sample_idx: int
    """Which of the question's completions."""
    messages: list[Message]
    prompt_hash: str
    image_hash: str
    key: str
    """SHA-256 of everything the completion depends on."""

    @property
    def number(self) -> int:
        """Seeds its draw, in whatever process and batch it is made."""
        return int(self.key[:12], 16)


LATER_FIELDS = ("stop", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""Settings that enter a key where they are set: keys of older results stay theirs."""


def make_requests(
    benchmark: Benchmark,
    samples: Sequence[Sample],
    *,
    view: ViewName,
    sampling: Sampling,
    model_hash: str,
) -> list[Request]:
    """All completions in the order of the samples.

    The key covers view, doc id, uid, messages, pixels, model, decoding, seed and sample index, so
    the same text with another image or in another view never shares a result.
    """
    requests = []
    settings = _key_settings(sampling)
    for doc_id, sample in enumerate(samples):
        messages = build_prompts(sample, benchmark.prompts).view(view)
        prompt_hash = digest(_text_only(messages))
        image_hash = images_hash(_images(messages))
        for index in range(sampling.num_generations):
            parts = [view, doc_id, sample.uid, prompt_hash, image_hash, model_hash, settings, index]
            requests.append(
                Request(
                    doc_id=doc_id,
                    uid=sample.uid,
                    sample_idx=index,
                    messages=messages,
                    prompt_hash=prompt_hash,
                    image_hash=image_hash,
                    key=digest(parts),
                )
            )
    return requests


def _key_settings(sampling: Sampling) -> dict[str, Any]:
    settings = asdict(sampling)
    del settings["num_generations"]
    for name in LATER_FIELDS:
        if settings[name] == getattr(Sampling, name):
            del settings[name]
    return {**settings, "seed": sampling.seed if sampling.temperature else 0}


def digest(value: Any) -> str:
    """SHA-256 of the value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def model_fingerprint(policy: "Policy", template_kwargs: Any = None) -> str:
    """SHA-256 over config, chat template, image settings and weights.

    Weights enter by the exact sum of their bytes and by a stride of them. Each is read once on its
    device; two checkpoints of one run get different fingerprints.
    """
    import torch

    digest_so_far = hashlib.sha256()
    head = {
        "config": policy.model.config.to_dict(),
        "template": getattr(policy.processor, "chat_template", None),
        "template_kwargs": template_kwargs,
        "pictures": image_settings(policy),  # the key is part of every stored fingerprint
    }
    digest_so_far.update(digest(head).encode())
    for name, weight in policy.model.named_parameters():
        flat = weight.detach().reshape(-1).contiguous().view(torch.uint8)
        stride = max(1, flat.numel() // STRIDED)
        digest_so_far.update(
            f"{name} {tuple(weight.shape)} {weight.dtype} {_bit_sum(flat)}".encode()
        )
        digest_so_far.update(flat[::stride].cpu().numpy().tobytes())
    return digest_so_far.hexdigest()


def with_pixels(policy: "Policy", pixels: tuple[int, int]) -> "Policy":
    """The policy with a processor that scales images to `pixels`, fewest and most; text-only ones as they are.

    Raises:
        ValueError: the model's image processor has no limits in pixels.
    """
    if policy.processor is policy.tokenizer:
        return policy
    processor = copy.copy(policy.processor)
    images = processor.image_processor = copy.copy(processor.image_processor)
    given = {name for name, value in dict(images.size).items() if value is not None}
    if given != {"shortest_edge", "longest_edge"}:
        raise ValueError(
            f"pixels={list(pixels)}: {type(images).__name__} has no limits in pixels (size {images.size}); "
            "take a profile without pixels"
        )
    images.size = type(images.size)(shortest_edge=pixels[0], longest_edge=pixels[1])
    return dataclasses.replace(policy, processor=processor)


def image_settings(policy: "Policy") -> dict[str, Any]:
    """What the processor does to images, pixel limits included; empty for text-only models."""
    if policy.processor is policy.tokenizer:
        return {}
    return policy.processor.image_processor.to_dict()


def _bit_sum(flat: "torch.Tensor") -> int:
    """Chunked: an int64 copy of a large embedding would need as much memory again and more."""
    import torch

    return sum(int(chunk.sum(dtype=torch.int64)) for chunk in flat.split(1 << 24))


def images_hash(images: Sequence[Image.Image]) -> str:
    """SHA-256 over the pixels of the images in their order."""
    return digest([_image_hash(image) for image in images])


def _images(messages: Sequence[Message]) -> list[Image.Image]:
    blocks = [b for turn in messages if isinstance(turn["content"], list) for b in turn["content"]]
    return [block["image"] for block in blocks if block["type"] == "image"]


def _image_hash(image: Image.Image) -> str:
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def _text_only(messages: Sequence[Message]) -> list[Any]:
    return [
        [turn["role"], turn["content"]]
        if isinstance(turn["content"], str)
        else [turn["role"], [block.get("text", "<image>") for block in turn["content"]]]
        for turn in messages
    ]
