"""Rows -> other projects' rows, and a Parquet file that holds its pictures.

What only the teacher may see goes where the other project keeps such things, or is left out.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dopd_vlm.prompts import PromptTemplate, build_prompts
from dopd_vlm.types import Message, Sample

from .pictures import load_picture
from .rows import Row
from .views import origin_of


def to_trl(sample: Sample, template: PromptTemplate | None = None) -> Row:
    """A row as TRL's vision trainers and its self-distillation trainers read it.

    `prompt` is the plain turn, `privileged_context` the teacher's text; drawn forms have no place.
    """
    return {
        "prompt": _without_pictures(build_prompts(sample, template).plain),
        "images": list(sample.plain.images),
        "answer": sample.answer,
        "privileged_context": sample.privileged.context,
    }


def to_verl(sample: Sample, template: PromptTemplate | None = None) -> Row:
    """A row as verl's Parquet has it; `bbox_images` are the teacher's pictures, as Vision-OPD's."""
    turns = _without_pictures(build_prompts(sample, template).plain)
    return {
        "data_source": str(sample.source.get("source", "dopd_vlm")),
        "prompt": [{**turn, "content": _flat(turn["content"])} for turn in turns],
        "images": [_embedded(image) for image in sample.plain.images],
        "bbox_images": [_embedded(image) for image in sample.privileged.images],
        "reward_model": {"style": "rule", "ground_truth": sample.answer},
        "extra_info": {"index": sample.uid, "privileged_context": sample.privileged.context},
    }


def with_bytes(row: Mapping[str, Any]) -> Row:
    """The row with its pictures as upright PNG bytes, without `origin`.

    Raises:
        ValueError: a picture that cannot be loaded.
    """
    made = {key: value for key, value in row.items() if key != "origin"}
    root = origin_of(row).get("root")
    for field in ("images", "teacher_images"):
        if row.get(field) is not None:
            made[field] = [_embedded(load_picture(source, root=root)) for source in row[field]]
    return made


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes rows, already of plain values and picture bytes, to one Parquet file."""
    import datasets

    datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(str(path))


def _embedded(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _without_pictures(messages: list[Message]) -> list[Message]:
    """The turns with bare image blocks, as the pictures travel in a column of their own."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [{"type": "image"} if b["type"] == "image" else b for b in content]
        turns.append({"role": message["role"], "content": content})
    return turns


def _flat(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join("<image>" if block["type"] == "image" else block["text"] for block in content)
