"""Rows per second from files to model inputs, beside a bare `datasets` + processor loop.

    python scripts/bench_data.py

JPEGs of 640 x 480 pixels with four boxes a row, drawn and as text, through make_sample and
encode_prompt in both views; the bare loop decodes the picture with `datasets` and calls the
processor once, without boxes, checks or a second view. One thread, one process, the same rows.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build  # noqa: F401
import datasets
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dopd_vlm.data.embedded import embedded_model
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_sample
from dopd_vlm.prompts import build_prompts

NUM_ROWS = 200
ROUNDS = 3
PHOTOS = Path(__file__).parents[1] / "data" / "assets" / "photos"
SIZE = {"shortest_edge": 256 * 32 * 32, "longest_edge": 1280 * 32 * 32}
"""Limits of Qwen3-VL's own processor: a picture of 640 x 480 keeps its size."""


def make_rows(folder: Path) -> None:
    """A folder of rows on crops of the shipped photographs."""
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    lines = []
    for index in range(NUM_ROWS):
        photo = photos[index % len(photos)].resize((700, 540))
        shift = index % 60
        photo.crop((shift, shift, shift + 640, shift + 480)).save(
            folder / f"{index}.jpg", quality=90
        )
        boxes = [{"bbox": [40 + 130 * n, 60, 110, 200], "label": f"thing {n}"} for n in range(4)]
        row = {"uid": str(index), "images": [f"{index}.jpg"], "question": "How many things ?"}
        lines.append(json.dumps({**row, "answer": "4", "annotations": {"boxes": boxes}}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def rate(work: Callable[[Any], object], rows: Any) -> float:
    """Rows per second, the median of ROUNDS passes after one that is not counted."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for row in rows:
            work(row)
        times.append(time.perf_counter() - start)
    return len(rows) / statistics.median(times[1:])


def make_processor() -> Qwen3VLProcessor:
    """Qwen3-VL's processor with its own limits, on the embedded student's tokenizer."""
    path = embedded_model("embedded:student_vl")
    tokenizer = AutoTokenizer.from_pretrained(path)
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, size=SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=tokenizer.chat_template or (path / "chat_template.jinja").read_text(),
    )


def main() -> None:
    """Times the parts and prints a line each."""
    folder = Path(tempfile.mkdtemp())
    make_rows(folder)
    processor = make_processor()

    def encode(messages: list[dict[str, Any]], images: Any) -> object:
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return processor(text=[text], images=list(images), return_tensors="pt")

    def sample_only(row: Any) -> object:
        return make_sample(row, [("boxes", "both")])

    def both_views(row: Any) -> object:
        sample = make_sample(row, [("boxes", "both")])
        pair = build_prompts(sample)
        encode(pair.plain, sample.plain.images)
        return encode(pair.privileged, sample.privileged.images)

    def plain_view(row: Any) -> object:
        sample = make_sample(row, [])
        return encode(build_prompts(sample).plain, sample.plain.images)

    def bare(row: Any) -> object:
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        return encode([{"role": "user", "content": content}], [row["images"][0].convert("RGB")])

    rows = read_rows(folder)
    table = datasets.Dataset.from_list(
        [{"question": row["question"], "images": [str(folder / row["images"][0])]} for row in rows]
    ).cast_column("images", datasets.List(datasets.Image()))
    for name, work, source in (
        ("bare datasets + processor, one view", bare, table),
        ("ours, one view, no annotation", plain_view, rows),
        ("ours, sample with boxes drawn and written", sample_only, rows),
        ("ours, that and both views encoded", both_views, rows),
    ):
        print(f"{name:45} {rate(work, source):7.1f} rows/s")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
