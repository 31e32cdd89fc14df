"""Images as text: for pages that hold everything, chat endpoints and tables."""

import base64
import io
from typing import Any

from PIL import Image

LONGEST_SIDE = 480
"""Pixels to which a thumbnail is scaled down."""
LARGEST_PNG = 256
"""Pixels of the longer side up to which a thumbnail loses nothing; larger images become JPEG."""


def image_uri(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """`data:image/KIND;base64,...`; `options` are Pillow's for that format, e.g. quality=85."""
    return f"data:image/{kind};base64,{image_base64(image, kind, **options)}"


def image_base64(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """The encoded file's bytes as base64."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail_uri(image: Image.Image, longest: int = LONGEST_SIDE) -> str:
    """The image as a data URI, scaled down to `longest` pixels if it is larger."""
    small = image.copy()
    small.thumbnail((longest, longest))
    if max(image.size) > LARGEST_PNG:
        return image_uri(small, "jpeg", quality=85)
    return image_uri(small)
