"""What is sent to the annotating model: the wording of both passes, filled in, and images as data URLs.

The paper (its section on data, and Fig. 13, an image) states what is asked for, not in which
words. In a wording `{question}` holds the choices too, `{answer}` a line with the known answer or
nothing, `{places}` how coordinates are written, `{annotation}` the first pass's result.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dopd_vlm.data_uri import image_uri
from dopd_vlm.types import Message

from ..coords import Frame
from ..images import load_image
from ..questions import PLACEHOLDER, Question, read_question
from ..views import origin_of

SIDE_FACTOR = 28
"""Sides are sent as multiples of this, Qwen2.5-VL's grid, so that its server resizes no more."""
MIN_PIXELS = 4 * SIDE_FACTOR**2
JPEG_QUALITY = 92


RULES = (
    "You write training data. Reply with one JSON value and nothing else: no explanation, "
    "no code fence."
)
ANSWER = "Known answer, for your eyes only: {answer}\n"
NO_DISCLOSURE = (
    "Never state the answer, nor its letter, nor a result from which it can be read off directly."
)
PLACES = {
    "relative": (
        "Coordinates are integers from 0 to 1000, relative to the width and height of the image"
    ),
    "fraction": "Coordinates are fractions from 0 to 1 of the image's width and height",
    "pixels": "Coordinates are integer pixels of the image as given ({sizes})",
}
CHECK = (
    "Another annotator wrote training data for a question. Judge it strictly.\n"
    "Question:\n{question}\n{answer}Annotation:\n{annotation}\n\n{criteria}\n"
    'Reply with one JSON object and nothing else: {"good": true or false, "reason": "one sentence"}'
)
REPAIR = (
    "That cannot be used. {reason}\nWrite it anew, all of it: one JSON value of the form asked for "
    "and nothing else."
)
"""Follows a bad reply: at temperature 0 the same question alone would get the same reply."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Both passes of one kind."""

    write: str
    """The first pass: writes the annotation."""
    criteria: str
    """What the second pass must find true."""


_LIST = 'Form: ["...", "..."]'
_TAIL = "\n\nQuestion:\n{question}\n{answer}"

WORDINGS: dict[str, Wording] = {
    "boxes": Wording(
        write=(
            f"{RULES}\nMark every object in the image that one must look at to answer the "
            "question, and no other: a tight box and a short label that names the object.\n"
            "{places}; x grows to the right, y downwards.\n"
            'Form: [{"bbox_2d": [x1, y1, x2, y2], "label": "..."{image}}]' + _TAIL
        ),
        criteria=(
            "Good means: every box is tight around the object that its label names; every object "
            "needed for the question has a box; no box is beside the point. {places}."
        ),
    ),
    "hints": Wording(
        write=(
            f"{RULES}\nDecompose the way to the answer into two to six short steps that say what "
            "to do or to look at, in order. Do not carry any step out: no intermediate results. "
            f"{NO_DISCLOSURE}\n{_LIST}{_TAIL}"
        ),
        criteria=(
            "Good means: the steps are correct, complete and in order; none carries out its step "
            "or gives an intermediate result; the answer cannot be read off."
        ),
    ),
    "summary": Wording(
        write=(
            f"{RULES}\nSummarise in one or two sentences how to approach the question. "
            f"{NO_DISCLOSURE}\n{_LIST}{_TAIL}"
        ),
        criteria="Good means: the approach is correct, and the answer cannot be read off.",
    ),
    "solution": Wording(
        write=(
            f"{RULES}\nSolve the question in short steps, each with what comes out of it. The last "
            f"step states the answer.\n{_LIST}{_TAIL}"
        ),
        criteria="Good means: every step is correct and follows; the last one states the answer.",
    ),
    "captions": Wording(
        write=(
            f"{RULES}\nDescribe the image in one to three sentences, with what matters for the "
            f"question. Do not answer the question.\n{_LIST}{_TAIL}"
        ),
        criteria="Good means: every statement is true of the image and bears on the question.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row as it is shown to the annotating model."""

    question: Question
    frames: tuple[Frame, ...]
    """Of each image: the family of its numbers, its own size and the size as sent."""
    urls: tuple[str, ...]


def show_row(row: Mapping[str, Any], coords: str, max_pixels: int) -> ShownRow:
    """The row's question and images.

    Args:
        coords: how the model writes places: a name of `coords.FAMILIES`; `pixel` is pixels of the
            image as sent.
        max_pixels: larger images are sent smaller.

    Raises:
        ValueError: the row's images or question are wrong.
    """
    root = origin_of(row).get("root")
    sources = row.get("images") or []
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        raise ValueError(f"images must be a list of images, got {type(sources).__name__}")
    images = [load_image(source, root=root) for source in sources]
    sent = [_resize(image, max_pixels) for image in images]
    family = "qwen2_5" if coords == "pixel" else coords
    return ShownRow(
        question=read_question(row, len(images)),
        frames=tuple(
            Frame(family=family, size=image.size, resized=shown.size)
            for image, shown in zip(images, sent, strict=True)
        ),
        urls=tuple(image_uri(shown, "jpeg", quality=JPEG_QUALITY) for shown in sent),
    )


def write_request(kind: str, row: ShownRow) -> list[Message]:
    """The first pass: write the annotation."""
    return _turn(_fill(WORDINGS[kind].write, row, {}), row.urls)


def check_request(kind: str, row: ShownRow, annotation: str) -> list[Message]:
    """The second pass: judge it."""
    template = CHECK.replace("{criteria}", WORDINGS[kind].criteria)
    return _turn(_fill(template, row, {"annotation": annotation}), row.urls)


def repair_turns(text: str, reason: str) -> list[Message]:
    """The turns after a bad reply: it, and what is wrong with it."""
    asked_again = REPAIR.replace("{reason}", reason)
    return [{"role": "assistant", "content": text}, {"role": "user", "content": asked_again}]


def _fill(template: str, row: ShownRow, more: Mapping[str, str]) -> str:
    """The wording with its fields filled in one pass: what a row says is never filled itself."""
    answer, choices = row.question.answer, row.question.choices or {}
    if answer in choices:
        answer = f"{answer} ({choices[answer]})"
    values = {
        "question": _question(row.question),
        "answer": ANSWER.replace("{answer}", answer) if answer else "",
        "places": _places(row.frames),
        "image": ', "image": number of the image, from 1' if len(row.frames) > 1 else "",
        **more,
    }
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda match: values[match[1]], template)


def _question(question: Question) -> str:
    """Earlier turns, the question and its choices; with several images, where each of them goes."""
    lines = [f"{turn['role']}: {turn['content']}" for turn in question.history]
    pieces = question.text.split(PLACEHOLDER)
    if len(pieces) > 2:
        pieces[1:] = [f"[image {n}]{piece}" for n, piece in enumerate(pieces[1:], start=1)]
    lines.append("".join(pieces).strip())
    lines += [f"{letter}. {option}" for letter, option in (question.choices or {}).items()]
    return "\n".join(lines)


def _places(frames: Sequence[Frame]) -> str:
    if not frames or frames[0].family in ("qwen2", "qwen3"):
        return PLACES["relative"]
    if frames[0].family == "norm1":
        return PLACES["fraction"]
    sizes = [f"{frame.resized[0]} x {frame.resized[1]}" for frame in frames if frame.resized]
    return PLACES["pixels"].replace("{sizes}", ", ".join(sizes))


def _turn(text: str, urls: Sequence[str]) -> list[Message]:
    if not urls:
        return [{"role": "user", "content": text}]
    blocks: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}} for url in urls
    ]
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]


def _resize(image: Image.Image, max_pixels: int) -> Image.Image:
    from qwen_vl_utils.vision_process import smart_resize  # here: it imports torch

    height, width = smart_resize(
        image.height, image.width, SIDE_FACTOR, min_pixels=MIN_PIXELS, max_pixels=max_pixels
    )
    return image.resize((width, height), Image.Resampling.BICUBIC)
