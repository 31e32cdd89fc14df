"""One image from a row, loaded once: size checked before decoding, upright, RGB on white."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Width x height above which an image is refused before it is decoded."""
MAX_ASPECT = 20
"""Longer side over shorter above which an image is refused: the processor and qwen-vl-utils then
resize differently, so what a place means would depend on who resized."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def load_image(
    source: Any, *, root: str | Path | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The image as RGB, EXIF-upright, alpha composited on white.

    Args:
        source: a path, `{"bytes": ..., "path": ...}` as `datasets` has it, or a PIL image.
        root: folder that a path must be in; absolute paths, `..` and links out are refused. None: a
            path is taken as it is.
        max_pixels: limit on width x height of the stored image.

    Raises:
        ValueError: missing, truncated, not an image, animated, over the limit, too thin, or
            outside `root`.
    """
    if isinstance(source, Image.Image):
        _check_size("an image in memory", source, max_pixels)
        return _upright_rgb(source)
    if isinstance(source, Mapping):
        data = source.get("bytes")
        if data is not None and not isinstance(data, bytes):
            raise ValueError(f"an image's bytes must be bytes, got {type(data).__name__}")
        if data is not None:
            return _decode(
                f"image {source.get('path') or 'in bytes'}", io.BytesIO(data), max_pixels
            )
    path = image_path(source, root)
    if path is None:
        raise ValueError(
            f"an image must be a path, bytes and path, or a PIL image; got {type(source).__name__}"
        )
    return _decode(f"image {source!s}", path, max_pixels)


def image_path(source: Any, root: str | Path | None, *, word: str = "image") -> Path | None:
    """The file that a path, or a mapping with a path and no bytes, names; None for other things.

    Raises:
        ValueError: the file is missing, or outside `root`; `word` says what it was to be.
    """
    if isinstance(source, Mapping):
        source = source.get("path")
    if not isinstance(source, str | Path) or not str(source):
        return None
    path = _inside(source, Path(root), word) if root is not None else Path(source)
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise ValueError(f"{word} {str(source)!r} is no name of a file: {error}") from error
    if not is_file:
        raise ValueError(f"{word} {source!s} does not exist (looked for {path})")
    return path


def _inside(source: str | Path, root: Path, word: str) -> Path:
    text = str(source)
    pure = PurePosixPath(text.replace("\\", "/"))
    if "\0" in text or pure.is_absolute() or PureWindowsPath(text).drive or ".." in pure.parts:
        raise ValueError(
            f"{word} path {text!r} must be relative, without '..', inside the data folder {root}"
        )
    path = root / pure
    try:
        target, folder = path.resolve(), root.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError is Python 3.11's for a loop
        raise ValueError(f"{word} path {text!r} is a link that leads to itself") from error
    if not target.is_relative_to(folder):
        raise ValueError(f"{word} path {text!r} is a link that leaves the data folder {root}")
    return path


def _decode(name: str, file: Any, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own limit replaces Pillow's, which only warns below twice its size.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(name, image, max_pixels)
                if getattr(image, "is_animated", False) and image.format != "MPO":
                    raise ValueError(f"{name} is animated; give one still image")
                image.load()
                return _upright_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image of a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is over the limit of {max_pixels} pixels") from error
    except ValueError:
        raise
    except Exception as error:  # a decoder may raise anything for damaged bytes
        raise ValueError(f"{name} is truncated or damaged: {error}") from error


def _check_size(name: str, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty: {width} x {height} pixels")
    if width * height > max_pixels:
        raise ValueError(f"{name} has {width} x {height} pixels, over the limit of {max_pixels}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(
            f"{name} has {width} x {height} pixels; sides of more than {MAX_ASPECT}:1 are refused: "
            "cut or pad it"
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys scaled, where a conversion would clip them at 255."""
    low, high = cast(tuple[float, float], image.getextrema())
    if low < 0 or high > 65_535:
        raise ValueError(f"an image of {low}..{high} is no 16-bit one: store it with 8 bits")
    return image.point(lambda value: value / 256).convert("L")


def _upright_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image without an orientation tag."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("an image of floats has no known black and white: store it with 8 bits")
    if upright.mode.startswith("I"):
        upright = _eight_bits(upright.convert("I"))
    if upright.mode in ALPHA_MODES or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    rgb = upright.convert("RGB")
    clean = Image.new("RGB", rgb.size)
    clean.paste(rgb)
    return clean
