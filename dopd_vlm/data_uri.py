"""Pictures as text: for pages that hold everything, chat endpoints and tables."""

import base64
import io
from typing import Any

from PIL import Image


def picture_uri(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """`data:image/KIND;base64,...`; `options` are Pillow's for that format, e.g. quality=85."""
    return f"data:image/{kind};base64,{picture_base64(image, kind, **options)}"


def picture_base64(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """The encoded file's bytes as base64."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
