"""Detection and grounding data sets on COCO images -> our rows."""

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..coords import Frame, encode
from ..images import load_image
from ..rows import Row, sound_rows
from ..sources.jsonl import read_json

REFER_QUESTION = (
    "Locate {expression}. Answer with its box as [x1, y1, x2, y2], integers from 0 to 1000 "
    "relative to the width and height of the image."
)
UNPICKLE = (
    "import json, pickle; json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs.json', 'w'))"
)


def from_coco(source: Path, question: str) -> Iterator[Row]:
    """A row per image of COCO files, with its boxes, masks and captions.

    COCO asks nothing, so the question is the default one; its answer is the first caption. `source`
    is a file, or a folder whose files are taken together: instances and captions of one split.
    Crowd regions, whose boxes hold many objects, are left out and counted in `meta`.
    """
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    data = [read_json(file) for file in files]
    names = {e["id"]: e["name"] for part in data for e in part.get("categories", [])}
    by_image: dict[Any, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for entry in (entry for part in data for entry in part.get("annotations", [])):
        of_image = by_image[entry["image_id"]]
        if "caption" in entry:
            of_image["captions"].append(entry["caption"])
        if entry.get("iscrowd"):
            of_image["crowds"].append(entry["id"])
        elif "bbox" in entry:
            label = str(names.get(entry.get("category_id"), ""))
            of_image["boxes"].append({"bbox": entry["bbox"], "label": label})
            if entry.get("segmentation"):
                area = {"segmentation": entry["segmentation"], "label": label}
                of_image["masks"].append(area)
    images = _images([image for part in data for image in part["images"]])
    strays = sum(len(kinds[kind]) for name, kinds in by_image.items() if name not in images
                 for kind in ("boxes", "captions", "crowds"))  # fmt: skip
    if strays:
        warnings.warn(
            f"{source}: {strays} annotations of unlisted images are left out", stacklevel=2
        )
    for name, image in images.items():
        kinds = {kind: list(values) for kind, values in by_image[name].items()}
        crowds = len(kinds.pop("crowds", []))
        yield {
            "uid": str(name),
            "images": [image["file_name"]],
            "question": question,
            "answer": next(iter(kinds.get("captions", [])), ""),
            "annotations": kinds,
            "meta": {"source": "coco", **({"crowds": crowds} if crowds else {})},
        }


def _images(entries: Sequence[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    """The images by id; ValueError for an id of two files, whose annotations cannot be told apart."""
    by_id: dict[Any, Mapping[str, Any]] = {}
    for entry in entries:
        first = by_id.setdefault(entry["id"], entry)
        if first["file_name"] != entry["file_name"]:
            raise ValueError(
                f"image id {entry['id']!r} is both {first['file_name']!r} and {entry['file_name']!r}; "
                "ids must be unique"
            )
    return by_id


def from_refcoco(source: Path, question: str) -> Iterator[Row]:
    """A row per referring expression of RefCOCO, RefCOCO+ or RefCOCOg: where is it?

    The answer is the box in 0 to 1000 and the annotations are the box and mask of the object. Three
    forms are read: Parquet with `sentences`, `bbox` (XYXY) and `raw_image_info`, as the hub's
    jxu124/refcoco has it; Parquet with `image`, `answer` and `bbox` (XYWH), as lmms-lab/RefCOCO;
    and a folder with COCO's `instances.json` and `refs.json`. The original `refs(unc).p` is a
    pickle, which can run any code, and is refused.
    """
    if source.suffix in (".p", ".pkl", ".pickle"):
        raise ValueError(
            f"{source} is a pickle, which can run any code when it is read. If you trust its "
            f'source, convert it yourself: python -c "{UNPICKLE}" and import the folder'
        )
    template = question if "{expression}" in question else REFER_QUESTION
    for entry in _unc(source) if (source / "refs.json").is_file() else _tabled(source):
        yield from _referring(entry, template)


def _referring(entry: Mapping[str, Any], template: str) -> Iterator[Row]:
    left, top, width, height = box = entry["box"]
    frame = Frame(family="qwen3", size=entry["size"])
    answer = encode((left, top, left + width, top + height), frame)
    for number, expression in enumerate(entry["expressions"]):
        place = {"label": expression}
        masks = [{"segmentation": entry["mask"], **place}] if entry["mask"] else []
        yield {
            "uid": f"{entry['uid']}-{number}",
            "images": [entry["image"]],
            "question": template.replace("{expression}", expression),
            "answer": str(answer),
            "answer_type": "box",
            "annotations": {"boxes": [{"bbox": list(box), **place}], "masks": masks},
            "meta": {"source": "refcoco", "split": entry["split"]},
        }


def _tabled(source: Path) -> Iterator[dict[str, Any]]:
    """The entries of either Parquet form."""
    for row in sound_rows(source):
        if "sentences" in row:
            yield _with_sentences(row)
        else:
            image = row["images"][0]
            mask = [float(number) for number in row.get("segmentation") or []]
            yield {
                "uid": str(row.get("question_id") or row["uid"]),
                "image": image,
                "size": load_image(image).size,
                "box": tuple(row["bbox"]),
                "mask": [mask] if mask else None,
                "expressions": _distinct(row["answer"]),
                "split": row.get("split"),
            }


def _with_sentences(row: Row) -> dict[str, Any]:
    left, top, right, bottom = row["bbox"]
    about, raw = json.loads(row["raw_image_info"]), json.loads(row.get("raw_anns") or "{}")
    return {
        "uid": f"ref{row['ref_id']}",
        "image": about["file_name"],
        "size": (about["width"], about["height"]),
        "box": (left, top, right - left, bottom - top),
        "mask": raw.get("segmentation"),
        "expressions": _distinct([s["sent"] for s in row["sentences"]]),
        "split": row.get("split"),
    }


def _unc(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of `refs.json` with their boxes from `instances.json`."""
    instances = read_json(folder / "instances.json")
    images = {image["id"]: image for image in instances["images"]}
    objects = {entry["id"]: entry for entry in instances["annotations"]}
    for ref in read_json(folder / "refs.json"):
        image, thing = images[ref["image_id"]], objects[ref["ann_id"]]
        yield {
            "uid": f"ref{ref['ref_id']}",
            "image": image["file_name"],
            "size": (image["width"], image["height"]),
            "box": tuple(thing["bbox"]),
            "mask": thing.get("segmentation"),
            "expressions": _distinct([s["sent"] for s in ref["sentences"]]),
            "split": ref.get("split"),
        }


def _distinct(sentences: Sequence[str]) -> list[str]:
    """The expressions without repetitions; annotators often wrote the same."""
    return list(dict.fromkeys(sentence.strip() for sentence in sentences if sentence.strip()))
