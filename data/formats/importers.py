"""Other projects' files -> our rows: one function per format, all in `IMPORTERS`.

Each takes the file or folder and a default question, and yields rows whose images are named as
the file names them. `import_folder` reads one and writes the folder that `read_rows` reads.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from dopd_vlm.errors import unknown
from dopd_vlm.jsonl import write_lines

from ..rows import Row, sound_rows
from ..sources.webdataset import IMAGE_SUFFIXES
from .chat import (
    from_llava,
    from_ms_swift,
    from_trl,
    from_verl,
    from_vision_opd,
)
from .coco import from_coco, from_refcoco
from .folder import write_rows

QUESTION = "Describe the image."
SKIPPED = "skipped.jsonl"


def from_folder(source: Path, question: str) -> Iterator[Row]:
    """A row per image below a folder; the answer is the name of its folder."""
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            name = path.relative_to(source)
            yield {
                "uid": name.with_suffix("").as_posix().replace("/", "-"),
                "images": [name.as_posix()],
                "question": question,
                "answer": "" if path.parent == source else path.parent.name,
                "meta": {"source": source.name},
            }


def from_webdataset(source: Path, question: str) -> Iterator[Row]:
    """A row per sample of a `.tar` shard or a folder of shards.

    Columns in a sample's `json` are kept; without `question` and `messages` the question is the
    default one, and `caption` or `txt` its answer and a caption, `cls` its answer.
    """
    for row in sound_rows(source):
        with_source = {"meta": {"source": source.name}, **row}
        if with_source.get("question") is None and with_source.get("messages") is None:
            caption = str(row.get("caption") or row.get("txt") or "").strip()
            answer = row.get("answer")
            with_source["question"] = question
            with_source["answer"] = row.get("cls") or caption if answer is None else answer
            if caption and not row.get("annotations"):
                with_source["annotations"] = {"captions": [caption]}
        yield with_source


IMPORTERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    "coco": from_coco,
    "refcoco": from_refcoco,
    "llava": from_llava,
    "trl": from_trl,
    "ms_swift": from_ms_swift,
    "verl": from_verl,
    "vision_opd": from_vision_opd,
    "folder": from_folder,
    "webdataset": from_webdataset,
}


def import_folder(
    kind: str,
    source: Path,
    out: Path,
    *,
    images: Path | None = None,
    question: str = QUESTION,
) -> tuple[int, list[dict[str, str]]]:
    """Writes the rows of `source` and their images to the folder `out`.

    Args:
        kind: a name in `IMPORTERS`.
        images: folder of the images; None is the folder of the source.
        question: for formats that ask nothing; `{expression}` is RefCOCO's.

    Returns:
        The number of rows written, and `{"uid", "reason"}` of each row left out because an image
        cannot be loaded; these are in `out/skipped.jsonl` too.

    Raises:
        ValueError: unknown kind, a source that is not in that format, `out` holds rows already.
    """
    root = images or (source if source.is_dir() else source.parent)
    written, skipped = write_rows(import_rows(kind, source, question), out, root=root)
    if skipped:
        write_lines(out / SKIPPED, skipped)
    return written, skipped


def import_rows(kind: str, source: Path, question: str) -> Iterator[Row]:
    """The rows of `source`, which is in the format `kind` of `IMPORTERS`.

    Raises:
        ValueError: unknown kind, or a source that is not in that format.
    """
    if kind not in IMPORTERS:
        raise unknown("format", kind, IMPORTERS)
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    try:
        yield from IMPORTERS[kind](source, question)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        # The importers read the format's fields without asking; this is where one was not there.
        raise ValueError(
            f"{source} is not in the format {kind!r}: {type(error).__name__}: {error}"
        ) from error
