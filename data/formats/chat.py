"""Rows of other trainers and chat data sets: LLaVA, TRL, ms-swift, verl, Vision-OPD -> our rows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..questions import PLACEHOLDER
from ..rows import Row, sound_rows
from ..sources.jsonl import read_json

VISION_OPD_CONTEXT = (
    "Only focus on the objects inside the red bounding box in the image to answer this question."
)
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}


def from_llava(source: Path, question: str) -> Iterator[Row]:
    """A row per question of a LLaVA or ShareGPT file; earlier turns become the history.

    Placeholders move to the row's last user turn, the only one that may hold images.
    """
    for index, entry in enumerate(_list_of(source)):
        images = entry.get("image") or entry.get("images") or []
        images = [images] if isinstance(images, str) else images
        turns = [
            {"role": ROLES.get(turn["from"], "system"), "content": turn["value"]}
            for turn in entry["conversations"]
        ]
        asked = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
        for count, number in enumerate(asked):
            last = PLACEHOLDER * len(images) + _bare(turns[number]["content"])
            before = [{**turn, "content": _bare(turn["content"])} for turn in turns[:number]]
            yield {
                "uid": f"{entry.get('id', index)}-{count}",
                "images": images,
                "messages": [*before, {"role": "user", "content": last}],
                "answer": turns[number + 1]["content"] if number + 1 < len(turns) else "",
                "meta": {"source": "llava"},
            }


def from_trl(source: Path, question: str) -> Iterator[Row]:
    """TRL's vision rows: `messages`, or `prompt` and `completion`, with `privileged_context`."""
    for row in sound_rows(source):
        mapped = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, str):
            mapped["question"] = prompt
        elif prompt is not None:
            mapped["messages"] = prompt
        if completion is not None and mapped.get("answer") is None:
            mapped["answer"] = (
                completion if isinstance(completion, str) else _text_of(completion[0])
            )
        yield mapped


def from_ms_swift(source: Path, question: str) -> Iterator[Row]:
    """ms-swift's rows; `objects` become boxes, `teacher_prompt` the privileged context.

    `teacher_images` keeps its meaning (null: the student's, []: none). `objects.bbox` is XYXY in
    pixels (`bbox_type` real, the default); relative boxes are refused, as the file has no sizes.
    """
    for row in sound_rows(source):
        yield {
            "uid": row["uid"],
            "images": row.get("images") or [],
            "messages": _swift_turns(row),
            "annotations": {"boxes": _swift_boxes(row)},
            "privileged_context": row.get("teacher_prompt"),
            "teacher_images": row.get("teacher_images"),
            "meta": {"source": "ms-swift"},
        }


def from_verl(source: Path, question: str) -> Iterator[Row]:
    """verl's Parquet: `prompt` turns, `images`, `reward_model.ground_truth`; also `bbox_images`."""
    for row in sound_rows(source):
        yield {
            "uid": row["uid"],
            "images": row.get("images") or [],
            "messages": row["prompt"],
            "answer": str((row.get("reward_model") or {}).get("ground_truth") or ""),
            "teacher_images": row.get("bbox_images") or row.get("teacher_images"),
            "meta": {"source": str(row.get("data_source") or "verl")},
        }


def from_vision_opd(source: Path, question: str) -> Iterator[Row]:
    """Vision-OPD's `train.jsonl`: boxed `teacher_images` and its sentence for the teacher."""
    for row in sound_rows(source):
        yield {
            "uid": row["uid"],
            "images": row["images"],
            "question": row["problem"],
            "answer": row.get("answer"),
            "teacher_images": row.get("teacher_images"),
            "privileged_context": VISION_OPD_CONTEXT,
            "meta": {"source": "Vision-OPD"},
        }


def _swift_boxes(row: Row) -> list[dict[str, Any]]:
    objects = row.get("objects") or {}
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if boxes and objects.get("bbox_type", "real") not in ("real", None):
        raise ValueError(f"row {row['uid']!r}: bbox_type {objects['bbox_type']!r}; need 'real'")
    images = objects.get("image_id") or [0] * len(boxes)
    return [
        {
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "label": refs[number] if number < len(refs) else "",
            "image": images[number],
        }
        for number, box in enumerate(boxes)
    ]


def _swift_turns(row: Row) -> list[dict[str, str]]:
    """The turns with each `<ref-object>` replaced by the next object's words."""
    named = iter((row.get("objects") or {}).get("ref") or [])
    turns = []
    for turn in row["messages"]:
        if turn["role"] == "user" and "<bbox>" in turn["content"]:
            raise ValueError(f"row {row['uid']!r}: <bbox> in a question is not supported")
        pieces = turn["content"].split("<ref-object>")
        text = pieces[0] + "".join(next(named, "<ref-object>") + piece for piece in pieces[1:])
        turns.append({"role": turn["role"], "content": text})
    return turns


def _list_of(source: Path) -> Sequence[Mapping[str, Any]]:
    if source.suffix == ".jsonl":
        return list(sound_rows(source))
    data = read_json(source)
    if not isinstance(data, list):
        raise ValueError(f"{source} must hold a list, got {type(data).__name__}")
    return data


def _bare(text: str) -> str:
    return text.replace(PLACEHOLDER, "").strip()


def _text_of(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or "" for block in content)
