"""Rows and their images into a folder that `read_rows` reads."""

import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from dopd_vlm.jsonl import replacing, to_line

from ..images import image_path, load_image
from ..rows import METADATA, Row

KEPT_FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
ORIENTATION = 0x0112
IMAGE_COLUMNS = ("images", "teacher_images")


def write_rows(
    rows: Iterable[Mapping[str, Any]], out: Path, *, root: Path | None
) -> tuple[int, list[dict[str, str]]]:
    """Writes `out/metadata.jsonl` and the rows' images under `out/images`.

    Args:
        root: folder of the images the rows name.

    Returns:
        The number of rows written, and `{"uid", "reason"}` of each row with an image that cannot
        be loaded; those are left out.

    Raises:
        ValueError: `out` holds rows already.
    """
    if (out / METADATA).exists():
        raise ValueError(f"{out / METADATA} exists already; choose another folder")
    (out / "images").mkdir(parents=True, exist_ok=True)
    written, skipped = 0, []
    with replacing(out / METADATA) as partial, partial.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            try:
                stored_row = with_files(row, f"{number:07d}", out, root)
            except ValueError as error:
                skipped.append({"uid": str(row.get("uid")), "reason": str(error)})
                continue
            file.write(to_line(stored_row))
            written += 1
    return written, skipped


def with_files(row: Mapping[str, Any], stem: str, out: Path, root: str | Path | None) -> Row:
    """The row without `origin`, naming images that are now in `out/images`.

    Raises:
        ValueError: an image that cannot be loaded; none of the row's images is then left.
    """
    stored_row = {key: value for key, value in row.items() if key != "origin"}
    names = [name for name in IMAGE_COLUMNS if row.get(name) is not None]
    for name in names:
        if not isinstance(row[name], Sequence) or isinstance(row[name], str):
            raise ValueError(f"{name} must be a list of images, got {type(row[name]).__name__}")
    loaded = {
        name: [(source, load_image(source, root=root)) for source in row[name]] for name in names
    }
    if row.get("videos") is not None:
        stored_row["videos"] = [
            _store_video(source, out, f"images/{stem}-videos-{index}", root)
            for index, source in enumerate(row["videos"])
        ]
    for name, images in loaded.items():
        stored_row[name] = [
            store_image(source, image, out, f"images/{stem}-{name}-{index}", root)
            for index, (source, image) in enumerate(images)
        ]
    return stored_row


def store_image(
    source: Any, loaded: Image.Image, out: Path, stem: str, root: str | Path | None
) -> str:
    """Stores an image under `out` and returns its name there.

    What `load_image` shows unchanged (upright RGB or grey JPEG, PNG or WebP) is kept as it is:
    bytes are written, a file is linked where the file system can and else copied. Anything else
    becomes an RGB PNG.
    """
    data = source.get("bytes") if isinstance(source, Mapping) else None
    given = io.BytesIO(data) if data is not None else image_path(source, root)
    suffix = None if given is None else _kept_suffix(given)
    if given is None or suffix is None:
        loaded.save(out / f"{stem}.png")
        return f"{stem}.png"
    target = out / f"{stem}{suffix}"
    if isinstance(given, io.BytesIO):
        target.unlink(missing_ok=True)
        target.write_bytes(given.getvalue())
    else:
        _link(given, target)
    return f"{stem}{suffix}"


def _store_video(source: Any, out: Path, stem: str, root: str | Path | None) -> Any:
    """Stores a video as it is; its entry with the path there."""
    path = image_path(source, root, word="video")
    if path is None:
        raise ValueError(f"a video must be a path, or an object with a path; got {source!r}")
    name = f"{stem}{path.suffix}"
    _link(path, out / name)
    return {**source, "path": name} if isinstance(source, Mapping) else name


def _link(path: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system cannot."""
    target.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def _kept_suffix(file: Path | io.BytesIO) -> str | None:
    """The suffix of a file that needs no conversion, else None."""
    try:
        with Image.open(file, formats=list(KEPT_FORMATS)) as image:
            upright = image.getexif().get(ORIENTATION, 1) == 1
            plain = image.mode in ("RGB", "L") and "transparency" not in image.info
            return KEPT_FORMATS[str(image.format)] if upright and plain else None
    except UnidentifiedImageError:
        return None
