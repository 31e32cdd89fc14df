"""A row -> a Sample: the plain view from a whitelist, the privileged one from the annotations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dopd_vlm.errors import unknown
from dopd_vlm.types import Sample, View

from .annotations.registry import CheckedType, DrawnType, annotation_type, forms
from .coords import Frame, check_family
from .images import MAX_PIXELS, load_image
from .questions import Question, parse_json, read_question
from .videos import load_clips
from .words import check_words

AnnotationChoice = str | tuple[str, str]
"""A type's name, shown as text, or (name, form) with form `text`, `drawn` or `both`."""
Resize = Callable[[Image.Image], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that no Sample could be made of, and why."""

    uid: str
    file: str
    reason: str


def section(name: str, text: str) -> str:
    """One annotation type's part of the privileged context: a heading line, then the text.

    The only place that fixes this format; models trained on it depend on it.
    """
    return f"{name}:\n{text}"


def make_sample(
    row: Mapping[str, Any],
    annotations: Sequence[AnnotationChoice],
    *,
    root: str | Path | None = None,
    coords: str = "qwen3",
    resize: Resize | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Sample:
    """The Sample of one row, its privileged view showing the chosen annotations.

    plain = images, question or messages, choices and system of the row, and nothing else.
    privileged = the same images, or `teacher_images` ([] is none), with drawn forms on copies;
    context = `privileged_context`, then one `section` per type in the given order, a line each.

    Args:
        row: as design section 4 has it; rows of `read_rows` know their file and folder.
        annotations: which types the teacher sees, in which form.
        root: folder of the images; None takes the one the row was read from.
        coords: the family whose numbers stand for places in the text.
        resize: image -> its size after the processor's resize; `qwen2_5` needs it.
        max_pixels: limit per image.

    Raises:
        ValueError: unknown type, form or coords; otherwise with the row's uid and file: anything
            wrong with the row's images, question, choices, answer or annotations.
    """
    forms_of = check_choices(annotations)
    check_family(coords)
    root = root if root is not None else origin_of(row).get("root")
    try:
        if "problem" in origin_of(row):
            raise ValueError(origin_of(row)["problem"])
        return _sample(row, forms_of, root, coords, resize, max_pixels)
    except ValueError as error:
        raise ValueError(f"row {uid_of(row)!r}{_where(row)}: {error}") from error


def make_samples(
    rows: Iterable[Mapping[str, Any]],
    annotations: Sequence[AnnotationChoice],
    **options: Any,
) -> tuple[list[Sample], list[Skipped]]:
    """The Samples of all good rows, and a record of each bad one; options as in `make_sample`.

    Raises:
        ValueError: what is wrong with the choices themselves, before any row is read.
    """
    check_choices(annotations)
    check_family(options.get("coords", "qwen3"))
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for row in rows:
        try:
            samples.append(make_sample(row, annotations, **options))
        except ValueError as error:
            file = str(origin_of(row).get("file") or "")
            skipped.append(Skipped(uid=uid_of(row), file=file, reason=str(error)))
    return samples, skipped


def check_choices(annotations: Sequence[AnnotationChoice]) -> list[tuple[str, str]]:
    """(name, form) pairs; ValueError for an unknown type or form, or a type named twice."""
    if isinstance(annotations, str):
        raise ValueError(f"annotations must be a list of names, got the string {annotations!r}")
    pairs = []
    for choice in annotations:
        name, form = (choice, "text") if isinstance(choice, str) else choice
        known = forms(name)
        if form not in known:
            raise unknown(f"form of annotation type {name!r}:", form, known)
        if name in [other for other, _ in pairs]:
            raise ValueError(f"annotation type {name!r} is chosen twice; use the form 'both'")
        pairs.append((name, form))
    return pairs


def uid_of(row: Mapping[str, Any]) -> str:
    """The row's uid as a string, "?" when it has none."""
    uid = row.get("uid")
    return "?" if uid is None else str(uid)


def _sample(
    row: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    root: str | Path | None,
    coords: str,
    resize: Resize | None,
    max_pixels: int,
) -> Sample:
    images = _images(row, "images", root, max_pixels)
    clips = load_clips(row.get("videos"), root=root, max_pixels=max_pixels)
    question = read_question(row, len(images), [clip.text for clip in clips])
    images += tuple(frame for clip in clips for frame in clip.frames)
    values = _values(row, pairs, question, images)
    marked = _marked(row, pairs, values, images, root, max_pixels)
    frame = _frame(images, coords, resize)
    texts = [_ready_context(row)]
    for name, form in pairs:
        text = _describe(name, values[name], frame) if form != "drawn" else ""
        texts.append(section(name, text) if text else "")
    meta = as_object(row.get("meta"), "meta")
    origin = {key: value for key, value in origin_of(row).items() if key in ("file", "line")}
    sample = Sample(
        uid=uid_of(row),
        question=question.text,
        answer=question.answer,
        plain=View(images=images),
        privileged=View(images=marked, context="\n".join(text for text in texts if text)),
        choices=question.choices,
        answer_type=question.answer_type,
        system=question.system,
        history=question.history,
        source={**meta, **origin},
    )
    check_words(sample)
    return sample


def _ready_context(row: Mapping[str, Any]) -> str:
    text = row.get("privileged_context")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"privileged_context must be text, got {text!r}")
    return (text or "").strip()


def _images(
    row: Mapping[str, Any], field: str, root: str | Path | None, max_pixels: int
) -> tuple[Image.Image, ...]:
    sources = row.get(field)
    if sources is None and field == "images" and row.get("image") is not None:
        sources = [row["image"]]
    if sources is None:
        return ()
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        raise ValueError(f"{field} must be a list of images, got {type(sources).__name__}")
    return tuple(load_image(source, root=root, max_pixels=max_pixels) for source in sources)


def _values(
    row: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    question: Question,
    images: Sequence[Image.Image],
) -> dict[str, Any]:
    raw = {"answer": question.answer, **as_object(row.get("annotations"), "annotations")}
    sizes = [image.size for image in images]
    values = {}
    for name, _ in pairs:
        kind = annotation_type(name)
        with _blaming(name):
            values[name] = kind.parse(raw.get(name), sizes)
            if isinstance(kind, CheckedType):
                kind.check(values[name], question.answer, question.choices)
    return values


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Errors inside become ValueErrors that name the annotation type."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"annotations.{name}: {error}") from error
    except Exception as error:  # a type of someone else's: it may raise anything
        raise ValueError(f"annotations.{name}: {type(error).__name__}: {error}") from error


def _describe(name: str, value: Any, frame: Frame) -> str:
    with _blaming(name):
        text = annotation_type(name).describe(value, frame)
        if not isinstance(text, str):
            raise ValueError(f"describe() must give text, got {type(text).__name__}")
        return text


def _draw(
    name: str, kind: DrawnType, images: Sequence[Image.Image], value: Any
) -> Sequence[Image.Image]:
    with _blaming(name):
        drawn = list(kind.draw(images, value))
        if len(drawn) < len(images) or not all(isinstance(one, Image.Image) for one in drawn):
            raise ValueError(f"draw() must give at least {len(images)} PIL images, got {drawn!r}")
        return drawn


def _marked(
    row: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    values: Mapping[str, Any],
    images: tuple[Image.Image, ...],
    root: str | Path | None,
    max_pixels: int,
) -> tuple[Image.Image, ...]:
    if row.get("teacher_images") is not None:
        given = _images(row, "teacher_images", root, max_pixels)
        if any(form != "text" for _, form in pairs):
            raise ValueError(
                "the row has teacher_images of its own, on which nothing is drawn: choose form "
                "'text', or leave teacher_images out"
            )
        return given
    marked: Sequence[Image.Image] = images
    for name, form in pairs:
        kind = annotation_type(name)
        if form != "text" and isinstance(kind, DrawnType):
            marked = _draw(name, kind, marked, values[name])
    return tuple(marked)


def _frame(images: Sequence[Image.Image], coords: str, resize: Resize | None) -> Frame:
    if not images:
        # No image, no place: types with places have refused theirs in parse.
        return Frame(family="pixel", size=(1, 1))
    frames = [
        Frame(family=coords, size=image.size, resized=resize(image) if resize else None)
        for image in images
    ]
    return Frame(
        family=coords, size=frames[0].size, resized=frames[0].resized, rest=tuple(frames[1:])
    )


def as_object(value: Any, field: str) -> dict[str, Any]:
    """A mapping, also when a table stored it as JSON text; None is empty."""
    if isinstance(value, str):
        value = parse_json(field, value)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be an object, got {type(value).__name__}")
    return dict(value)


def origin_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where `read_rows` took the row from: `file`, `line`, `root`, and a bad row's `problem`; empty for other rows."""
    origin = row.get("origin")
    return origin if isinstance(origin, Mapping) else {}


def _where(row: Mapping[str, Any]) -> str:
    origin = origin_of(row)
    if not origin.get("file"):
        return ""
    line = f" line {origin['line']}" if origin.get("line") else ""
    return f" ({origin['file']}{line})"
