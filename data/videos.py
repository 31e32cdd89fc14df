"""Videos of a row -> a bounded number of frames with their times, which then are images.

Decoding and the choice of frames are qwen-vl-utils'; it needs a decoder (`pip install decord`, the
extra `video`), as its torchvision backend calls a function that torchvision no longer has. Frames
keep the video's own size, so that boxes on them mean its pixels.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from .images import MAX_PIXELS, image_path, load_image
from .questions import PLACEHOLDER

DECODERS = ("decord", "torchcodec")
FPS = 2.0
"""Frames per second that are looked at: Qwen3-VL's default."""
MIN_FRAMES = 4
MAX_FRAMES = 16
"""Frames of a video, spread over all of it when `FPS` would give more."""
FRAMES_LIMIT = 128
"""The most that a row may ask for."""
OPTIONS = ("fps", "max_frames", "video_start", "video_end")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video as its frames."""

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    """When each frame is shown, from the video's beginning."""

    @property
    def text(self) -> str:
        """What stands for the video in the question: Qwen3-VL's time stamps around images."""
        return "".join(f"<{time:.1f} seconds>{PLACEHOLDER}" for time in self.seconds)


def load_clips(
    sources: Any, *, root: str | Path | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Clip, ...]:
    """The clips of a row's `videos`.

    Args:
        sources: a list of paths, or of `{"path", "fps", "max_frames", "video_start", "video_end"}`,
            the last two in seconds; None is no video.
        root: folder that the paths must be in, as for images.

    Raises:
        ValueError: another form, a missing or damaged file, no decoder installed.
    """
    if sources is None:
        return ()
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        raise ValueError(f"videos must be a list of videos, got {type(sources).__name__}")
    return tuple(_clip(source, root, max_pixels) for source in sources)


def _clip(source: Any, root: str | Path | None, max_pixels: int) -> Clip:
    path = image_path(source, root, word="video")
    if path is None:
        raise ValueError(f"a video must be a path, or an object with a path; got {source!r}")
    from qwen_vl_utils.vision_process import VIDEO_READER_BACKENDS

    name, errors = decoder()
    request = {"video": str(path), **_options(source)}
    try:
        # The annotation of these functions lacks the middle value.
        read: Any = VIDEO_READER_BACKENDS[name]
        pixels, about, _ = read(request)
    except errors as error:
        raise ValueError(f"video {path.name} cannot be read by {name}: {error}") from error
    frames = tuple(
        load_image(Image.fromarray(frame.permute(1, 2, 0).numpy()), max_pixels=max_pixels)
        for frame in pixels
    )
    seconds = tuple(float(index / about["fps"]) for index in about["frames_indices"])
    return Clip(frames=frames, seconds=seconds)


def _options(source: Any) -> dict[str, Any]:
    """What qwen-vl-utils takes for the choice of frames."""
    given = source if isinstance(source, Mapping) else {}
    unknown = set(given) - {"path", *OPTIONS}
    if unknown:
        raise ValueError(f"videos know {', '.join(('path', *OPTIONS))}; got {', '.join(unknown)}")
    options = {name: given[name] for name in OPTIONS if given.get(name) is not None}
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"videos.{name} must be a number of at least 0, got {value!r}")
    most = int(options.get("max_frames", MAX_FRAMES))
    if not 2 <= most <= FRAMES_LIMIT:
        raise ValueError(f"videos.max_frames must be in 2..{FRAMES_LIMIT}, got {most}")
    return {"fps": FPS, "min_frames": min(MIN_FRAMES, most), **options, "max_frames": most}


@cache
def decoder() -> tuple[str, tuple[type[BaseException], ...]]:
    """The first decoder that can be loaded, and the errors it raises for files it cannot read."""
    reasons = []
    for name in DECODERS:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            # torchcodec raises RuntimeError where the system lacks FFmpeg's libraries.
            reasons.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        own = (module.DECORDError,) if name == "decord" else ()
        return name, (ValueError, RuntimeError, OSError, IndexError, AssertionError, *own)
    raise ValueError(f"rows with videos need a decoder: pip install decord ({'; '.join(reasons)})")
