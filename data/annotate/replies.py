"""A model's reply -> the value of an annotation, or the reason why it cannot be used.

Nothing is guessed: a reply that does not have exactly the requested form is rejected with a reason.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..annotations.boxes import Boxes
from ..annotations.registry import CheckedType, annotation_type
from ..coords import Frame, decode

MAX_QUOTED = 160
MAX_LINES, MAX_BOXES, MAX_LETTERS = 8, 40, 400
"""Limits in the JSON schema: without them a weak model repeats itself and never closes the list."""
DECODER = json.JSONDecoder()


class BadReplyError(ValueError):
    """The reply cannot be used; the first word of the message is the kind of fault."""


def read_annotation(
    kind: str,
    text: str,
    finish_reason: str,
    *,
    frames: Sequence[Frame],
    answer: str,
    choices: Mapping[str, str] | None,
) -> Any:
    """Reads a first-pass reply: the value for `row["annotations"][kind]`.

    Args:
        frames: one per image: the coordinate family the model was asked to write in, and the
            image's size; the returned places are in its pixels.
        answer: what hints and summaries must not disclose.

    Raises:
        BadReplyError: `cut`, `no JSON`, `form`, `empty`, `place` or `disclosure`, and the detail.
    """
    if finish_reason == "length":
        raise BadReplyError("cut: the reply reached max_tokens")
    reply = find_json(text)
    value = _boxes(reply, frames) if kind == "boxes" else _lines(reply)
    if not value:
        raise BadReplyError("empty: the model found nothing to annotate")
    checked = annotation_type(kind)
    try:
        parsed = checked.parse(value, [frame.size for frame in frames])
    except ValueError as error:
        raise BadReplyError(f"place: {error}") from error
    if isinstance(checked, CheckedType):
        try:
            checked.check(parsed, answer, choices)
        except ValueError as error:
            raise BadReplyError(f"disclosure: {error}") from error
    return value


def reply_schema(kind: str, step: str, num_images: int) -> dict[str, Any]:
    """JSON schema of a pass's reply, for endpoints that can enforce one.

    It covers the form only: numbers may still be outside the image, and hints may still give the answer away.
    """
    words = {"type": "string", "minLength": 1, "maxLength": MAX_LETTERS}
    if step == "check":
        return _object_schema({"good": {"type": "boolean"}, "reason": words})
    if kind != "boxes":
        return {"type": "array", "items": words, "minItems": 1, "maxItems": MAX_LINES}
    place = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    which = {"image": {"type": "integer", "minimum": 1, "maximum": num_images}}
    box = {"bbox_2d": place, "label": words, **(which if num_images > 1 else {})}
    return {"type": "array", "items": _object_schema(box), "minItems": 1, "maxItems": MAX_BOXES}


def _object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def read_verdict(text: str, finish_reason: str) -> tuple[bool, str]:
    """(whether the annotation is good, why) in a second-pass reply.

    Raises:
        BadReplyError: the reply has no verdict.
    """
    if finish_reason == "length":
        raise BadReplyError("cut: the reply reached max_tokens")
    reply = find_json(text)
    if not isinstance(reply, Mapping) or not isinstance(reply.get("good"), bool):
        raise BadReplyError(f'form: need {{"good": true or false}}, got {_quoted(text)}')
    return reply["good"], str(reply.get("reason") or "")


def find_json(text: str) -> Any:
    """The JSON list or object in a reply; a code fence or words around it are ignored.

    Raises:
        BadReplyError: the reply has no JSON value, an unfinished one, or several.
    """
    bare = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    start = re.search(r"[\[{]", bare)
    if start is None:
        raise BadReplyError(f"no JSON: {_quoted(text)}")
    try:
        value, end = DECODER.raw_decode(bare, start.start())
    except (ValueError, RecursionError) as error:
        raise BadReplyError(f"no JSON: {error} in {_quoted(text)}") from error
    if re.search(r"[\[{]\s*[\"\[{]", bare[end:]):
        raise BadReplyError(f"no JSON: more than one value in {_quoted(text)}")
    return value


def _boxes(value: Any, frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """XYWH boxes in pixels of the row's images."""
    if isinstance(value, Mapping):
        value = [value] if "bbox_2d" in value else value.get("boxes")
    if not isinstance(value, list):
        raise BadReplyError("form: need a list of boxes")
    return [_box(index, entry, frames) for index, entry in enumerate(value)]


def _box(index: int, entry: Any, frames: Sequence[Frame]) -> dict[str, Any]:
    place = entry.get("bbox_2d") if isinstance(entry, Mapping) else None
    if not isinstance(place, list) or len(place) != 4 or not all(map(_is_number, place)):
        raise BadReplyError(f"form: [{index}] needs bbox_2d of four numbers: {entry}")
    if not isinstance(entry.get("label"), str) or not entry["label"].strip():
        raise BadReplyError(f"form: [{index}] needs a label: {entry}")
    image = entry.get("image", 1)
    if not isinstance(image, int) or not 1 <= image <= len(frames):
        raise BadReplyError(f"place: [{index}] names image {image!r} of {len(frames)}")
    frame = frames[image - 1]
    left, top, right, bottom = (round(value, 2) for value in decode(place, frame))
    bbox = [left, top, round(right - left, 2), round(bottom - top, 2)]
    box = {"bbox": bbox, "label": entry["label"].strip()}
    return {**box, "image": image - 1} if len(frames) > 1 else box


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _lines(value: Any) -> list[str]:
    """The non-empty strings of a list."""
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise BadReplyError("form: need a list of strings")
    return [line.strip() for line in value if line.strip()]


def describe(kind: str, value: Any, frames: Sequence[Frame]) -> str:
    """The value as text for the second pass; places in the coordinates of the first pass."""
    if kind != "boxes":
        return "\n".join(value)
    boxes = Boxes().parse(value, [frame.size for frame in frames])
    first, *rest = frames
    whole = Frame(family=first.family, size=first.size, resized=first.resized, rest=tuple(rest))
    return Boxes().describe(boxes, whole)


def _quoted(text: str) -> str:
    return repr(text[:MAX_QUOTED] + ("..." if len(text) > MAX_QUOTED else ""))
