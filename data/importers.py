"""Other projects' files -> our rows: one function per format, all in `IMPORTERS`.

Each takes the file or folder and a default question, and yields rows whose pictures are named as
the file names them. `write_rows` puts rows and their pictures into a folder that `read_rows` reads.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .questions import PLACEHOLDER
from .rows import Row, read_rows

VISION_OPD_CONTEXT = (
    "Only focus on the objects inside the red bounding box in the image to answer this question."
)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}


def from_coco(source: Path, question: str) -> Iterator[Row]:
    """A row per picture of a COCO `instances` or `captions` file, with boxes, masks and captions.

    COCO asks nothing, so the question is the default one; its answer is the first caption.
    """
    data = _json(source)
    names = {entry["id"]: entry["name"] for entry in data.get("categories", [])}
    found: dict[Any, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for entry in data.get("annotations", []):
        of_image = found[entry["image_id"]]
        if "caption" in entry:
            of_image["captions"].append(entry["caption"])
        if "bbox" in entry:
            label = str(names.get(entry.get("category_id"), ""))
            of_image["boxes"].append({"bbox": entry["bbox"], "label": label})
            if entry.get("segmentation"):
                area = {"segmentation": entry["segmentation"], "label": label}
                of_image["masks"].append(area)
    for image in data["images"]:
        annotations = {kind: list(values) for kind, values in found[image["id"]].items()}
        yield {
            "uid": str(image["id"]),
            "images": [image["file_name"]],
            "question": question,
            "answer": next(iter(annotations.get("captions", [])), ""),
            "annotations": annotations,
            "meta": {"source": "coco"},
        }


def from_llava(source: Path, question: str) -> Iterator[Row]:
    """A row per question of a LLaVA or ShareGPT file; earlier turns become the history.

    Placeholders move to the row's last user turn, the only one that may hold pictures.
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
    for row in read_rows(source):
        made = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, str):
            made["question"] = prompt
        elif prompt is not None:
            made["messages"] = prompt
        if completion is not None and made.get("answer") is None:
            made["answer"] = completion if isinstance(completion, str) else _text_of(completion[0])
        yield made


def from_ms_swift(source: Path, question: str) -> Iterator[Row]:
    """ms-swift's rows; `objects` become boxes, `teacher_prompt` the privileged context.

    `teacher_images` keeps its meaning (null: the student's, []: none). `objects.bbox` is XYXY in
    pixels (`bbox_type` real, the default); relative boxes are refused, as the file has no sizes.
    """
    for row in read_rows(source):
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
    for row in read_rows(source):
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
    for row in read_rows(source):
        yield {
            "uid": row["uid"],
            "images": row["images"],
            "question": row["problem"],
            "answer": row.get("answer"),
            "teacher_images": row.get("teacher_images"),
            "privileged_context": VISION_OPD_CONTEXT,
            "meta": {"source": "Vision-OPD"},
        }


def from_folder(source: Path, question: str) -> Iterator[Row]:
    """A row per picture below a folder; the answer is the name of the folder it lies in."""
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            name = path.relative_to(source)
            yield {
                "uid": name.with_suffix("").as_posix().replace("/", "-"),
                "images": [name.as_posix()],
                "question": question,
                "answer": "" if path.parent == source else path.parent.name,
                "meta": {"source": source.name},
            }


IMPORTERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    "coco": from_coco,
    "llava": from_llava,
    "trl": from_trl,
    "ms_swift": from_ms_swift,
    "verl": from_verl,
    "vision_opd": from_vision_opd,
    "folder": from_folder,
}


def import_rows(kind: str, source: Path, question: str) -> Iterator[Row]:
    """The rows of `source`, which is in the format `kind` of `IMPORTERS`.

    Raises:
        ValueError: unknown kind, or a source that is not in that format.
    """
    if kind not in IMPORTERS:
        raise ValueError(f"unknown format {kind!r}; known: {', '.join(IMPORTERS)}")
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    try:
        yield from IMPORTERS[kind](source, question)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        # The importers read the format's fields without asking; this is where one was not there.
        raise ValueError(
            f"{source} is not in the format {kind!r}: {type(error).__name__}: {error}"
        ) from error


def _swift_boxes(row: Row) -> list[dict[str, Any]]:
    objects = row.get("objects") or {}
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if boxes and objects.get("bbox_type", "real") not in ("real", None):
        raise ValueError(f"row {row['uid']!r}: bbox_type {objects['bbox_type']!r}; need 'real'")
    pictures = objects.get("image_id") or [0] * len(boxes)
    return [
        {
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "label": refs[number] if number < len(refs) else "",
            "image": pictures[number],
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


def _json(source: Path) -> Any:
    try:
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{source} cannot be read as JSON: {error}") from error


def _list_of(source: Path) -> Sequence[Mapping[str, Any]]:
    if source.suffix == ".jsonl":
        return read_rows(source)
    data = _json(source)
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
