"""Images through the image processor, each once however many prompts show it.

An image is known by its pixels: equal pixels have equal keys, whoever made them.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

GRID = "image_grid_thw"
APART = {"pixel_values", GRID}
"""What processors return that keep images apart (the Qwen-VL families): patches in a row, and per
image the grid that they form."""


class CachedImageProcessor:
    """Stands in a processor for its image processor and remembers the tensors of each image.

    Other processors than those that keep images apart pad or tile images by their company: they
    are called as usual, for all images of a prompt.
    """

    def __init__(self, image_processor: Any) -> None:
        self._inner = image_processor
        self._keys: dict[int, tuple[Image.Image, str]] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._joined: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def key(self, image: Image.Image) -> str:
        """A digest of size, mode and pixels."""
        if id(image) not in self._keys:
            pixels = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
            # The image is kept, so that no other one can come to have its id.
            self._keys[id(image)] = image, f"{image.width}x{image.height}-{image.mode}-{pixels}"
        return self._keys[id(image)][1]

    def __call__(self, images: Any, **options: Any) -> BatchFeature:
        if not all(isinstance(image, Image.Image) for image in images):
            return self._inner(images, **options)
        keys = tuple(self.key(image) for image in images)
        new = {k: i for k, i in zip(keys, images, strict=True) if k not in self._tensors}
        if new:
            tensors = self._inner(list(new.values()), **{**options, "return_tensors": "pt"})
            if set(tensors) != APART:
                return self._inner(images, **options)
            self._tensors |= dict(zip(new, split(tensors), strict=True))
        return BatchFeature(dict(self._together(keys)))

    def _together(self, keys: tuple[str, ...]) -> dict[str, Tensor]:
        """The same tensors for the same images, so that two views of a row hold them once."""
        if keys not in self._joined:
            self._joined[keys] = join([self._tensors[key] for key in keys])
        return self._joined[keys]

    def inside(self, processor: Any) -> Any:
        """A copy of the processor that has this in the place of its image processor."""
        shallow = copy.copy(processor)
        shallow.image_processor = self
        return shallow


def split(images: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Patches and grids of several images, one by one; views, no copies."""
    grids = images[GRID]
    patches = images["pixel_values"].split(grids.prod(-1).tolist())
    return [
        {"pixel_values": part, GRID: grid}
        for part, grid in zip(patches, grids.split(1), strict=True)
    ]


def join(images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of several prompts' images, concatenated; a single one as it is.

    Some may lack what others have. Where all but the first axis differ (tiles a prompt, pixels a tile),
    the smaller ones are filled up with 0, which processors mean by padding.
    """
    names = sorted({name for one in images for name in one})
    return {name: _behind([one[name] for one in images if name in one]) for name in names}


def _behind(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return torch.cat([_filled_up(part, largest) for part in parts])


def _filled_up(part: Tensor, shape: Sequence[int]) -> Tensor:
    missing = [size - have for size, have in zip(shape, part.shape[1:], strict=True)]
    if not any(missing):
        return part
    pads = [pad for size in reversed(missing) for pad in (0, size)]
    return torch.nn.functional.pad(part, pads)
