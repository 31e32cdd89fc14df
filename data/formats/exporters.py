"""Rows -> other projects' rows, and a Parquet file that holds its images.

What only the teacher may see goes where the other project keeps such things, or is left out.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dopd_vlm.errors import unknown
from dopd_vlm.jsonl import replacing
from dopd_vlm.prompts import PromptTemplate, build_prompts
from dopd_vlm.types import Message, Sample

from ..images import load_image
from ..rows import Row
from ..views import (
    AnnotationChoice,
    Skipped,
    check_choices,
    make_sample,
    origin_of,
    uid_of,
)

JSON_COLUMNS = ("annotations", "choices", "meta", "messages")
IMAGES = ("images", "teacher_images", "bbox_images")
ROW_GROUP = 100
"""Rows read at once when one is asked for; `datasets` has the same number for image sets."""


def to_trl(sample: Sample, template: PromptTemplate | None = None) -> Row:
    """A row as TRL's vision trainers and its self-distillation trainers read it.

    `prompt` is the plain turn, `privileged_context` the teacher's text; drawn forms have no place.
    """
    return {
        "prompt": _in_blocks(_without_images(build_prompts(sample, template).plain)),
        "images": list(sample.plain.images),
        "answer": sample.answer,
        "privileged_context": sample.privileged.context,
    }


def to_verl(sample: Sample, template: PromptTemplate | None = None) -> Row:
    """A row as verl's Parquet has it; `bbox_images` are the teacher's images, as Vision-OPD's."""
    turns = _without_images(build_prompts(sample, template).plain)
    return {
        "data_source": str(sample.source.get("source", "dopd_vlm")),
        "prompt": [{**turn, "content": _flat(turn["content"])} for turn in turns],
        "images": [_embedded(image) for image in sample.plain.images],
        "bbox_images": [_embedded(image) for image in sample.privileged.images],
        "reward_model": {"style": "rule", "ground_truth": sample.answer},
        "extra_info": {"index": sample.uid, "privileged_context": sample.privileged.context},
    }


def with_bytes(row: Mapping[str, Any]) -> Row:
    """The row with its images as upright PNG bytes, without `origin`.

    Columns that hold other keys from row to row (annotations, choices, meta, messages) become JSON
    text, as a Parquet column has one type; `read_rows` and `make_sample` take it so.

    Raises:
        ValueError: an image that cannot be loaded; a row with videos, which are not embedded.
    """
    if row.get("videos"):
        raise ValueError("rows with videos have no Parquet form: keep them in a folder")
    plain = {key: value for key, value in row.items() if key != "origin"}
    root = origin_of(row).get("root")
    for field in JSON_COLUMNS:
        if plain.get(field) is not None and not isinstance(plain[field], str):
            plain[field] = json.dumps(plain[field], ensure_ascii=False)
    for field in ("images", "teacher_images"):
        if row.get(field) is not None:
            plain[field] = [_embedded(load_image(source, root=root)) for source in row[field]]
    return plain


def export(
    kind: str,
    rows: Iterable[Mapping[str, Any]],
    annotations: Sequence[AnnotationChoice],
    path: Path,
    **options: Any,
) -> tuple[int, list[Skipped]]:
    """Writes rows in the form `kind` of `EXPORTERS` to one Parquet file.

    Args:
        annotations: what the privileged side shows, for the forms that have one.
        options: as for `make_sample`.

    Returns:
        How many rows were written, and those left out with the reason.

    Raises:
        ValueError: unknown kind, annotation type or form; no good row.
    """
    if kind not in EXPORTERS:
        raise unknown("form", kind, EXPORTERS)
    skipped: list[Skipped] = []

    def made() -> Iterator[Row]:
        for row in rows:
            try:
                yield EXPORTERS[kind](row, make_sample(row, annotations, **options))
            except ValueError as error:
                file = str(origin_of(row).get("file") or "")
                skipped.append(Skipped(uid=uid_of(row), file=file, reason=str(error)))

    check_choices(annotations)
    return write_parquet(made(), path), skipped


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Writes rows of plain values and image bytes to one Parquet file; how many.

    Rows are taken a hundred at a time, so there may be more than fit into memory, and each hundred
    is a row group, so that training reads them by position. Image columns carry the `datasets`
    feature Image, which the hub shows.

    Raises:
        ValueError: a row whose columns are not those of the first hundred, or of other types.
    """
    with replacing(path) as partial:
        written = _write_groups(rows, partial)
        if not written:
            raise ValueError(f"there is no row to write to {path}")
    return written


def _write_groups(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    import datasets

    taken = iter(rows)
    writer, features, written = None, None, 0
    while group := [dict(row) for row in islice(taken, ROW_GROUP)]:
        # from_list takes the columns of the first row and forgets the others'.
        columns = features or dict.fromkeys(name for row in group for name in row)
        _check_columns(group, columns, written)
        group = [{name: row.get(name) for name in columns} for row in group]
        if features is None:
            features = _features(datasets.Dataset.from_list(group).features)
        where = f"rows {written + 1} to {written + len(group)}"
        try:
            _check_types(datasets.Dataset.from_list(group).features, features)
            table = datasets.Dataset.from_list(group, features=features)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ValueError(
                f"{where} have values of other types than the first {ROW_GROUP}: {error}"
            ) from error
        writer = writer or pq.ParquetWriter(path, table.features.arrow_schema)
        writer.write_table(table.data.table, row_group_size=ROW_GROUP)
        written += len(group)
    if writer is not None:
        writer.close()
    return written


def _features(inferred: Any) -> Any:
    """The features with image columns as such."""
    import datasets

    images = {name: datasets.List(datasets.Image()) for name in IMAGES if name in inferred}
    return datasets.Features({**inferred, **images})


def _check_types(inferred: Mapping[str, Any], features: Mapping[str, Any]) -> None:
    """Columns must not change their type: a cast would turn a list into text in silence."""
    for name, feature in features.items():
        kinds = {_type_of(feature), _type_of(inferred.get(name))} - {"null", "NoneType"}
        if len(kinds) > 1:
            raise ValueError(f"{name} is {inferred[name]}, was {feature}")


def _type_of(feature: Any) -> str:
    """The data type of a plain feature, else what kind of feature it is."""
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _check_columns(group: Sequence[Mapping[str, Any]], columns: Iterable[str], start: int) -> None:
    for index, row in enumerate(group):
        more = set(row) - set(columns)
        if more:
            raise ValueError(
                f"row {start + index + 1} has columns that the first {ROW_GROUP} rows lack: "
                f"{', '.join(sorted(more))}; give them there too, as null"
            )


def _embedded(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _without_images(messages: list[Message]) -> list[Message]:
    """The turns with bare image blocks, as the images travel in a column of their own."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [{"type": "image"} if b["type"] == "image" else b for b in content]
        turns.append({"role": message["role"], "content": content})
    return turns


def _in_blocks(turns: list[Message]) -> list[Message]:
    """The turns with blocks throughout where any has some: a Parquet column has one type."""
    if all(isinstance(turn["content"], str) for turn in turns):
        return turns
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn["content"], str)
        else turn
        for turn in turns
    ]


def _flat(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join("<image>" if block["type"] == "image" else block["text"] for block in content)


EXPORTERS: dict[str, Callable[[Mapping[str, Any], Sample], Row]] = {
    "parquet": lambda row, sample: with_bytes(row),
    "trl": lambda row, sample: to_trl(sample),
    "verl": lambda row, sample: to_verl(sample),
}
"""Our own rows with their images inside, and those of other trainers."""
