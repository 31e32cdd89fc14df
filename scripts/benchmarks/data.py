"""Rows per second from files to model inputs, beside a bare `datasets` + processor loop.

    dopd bench data

JPEGs of 640 x 480 pixels with four boxes a row, drawn and as text, through make_sample and
encode_prompt in both views; the bare loop decodes the image with `datasets` and calls the
processor once, without boxes, checks or a second view. The same rows, one thread a process; the
lines with workers are a DataLoader around the bare loop, and what training reads from.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dopd_vlm.config import DataConfig, ModelConfig, RunConfig
from dopd_vlm.data.embedded.sets import embedded_model
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_sample
from dopd_vlm.models.policy import load_policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.wiring.samples import training_samples
from dopd_vlm.training.samples import BadRow, EncodedStream

NUM_ROWS = 200
ROUNDS = 3
PHOTOS = Path(__file__).parents[2] / "data" / "assets" / "photos"
SIZE = {"shortest_edge": 256 * 32 * 32, "longest_edge": 1280 * 32 * 32}
"""Limits of Qwen3-VL's own processor: an image of 640 x 480 keeps its size."""


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


def rate(passes: Callable[[], object]) -> float:
    """Rows per second, the median of ROUNDS passes over NUM_ROWS after one that is not counted."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        passes()
        times.append(time.perf_counter() - start)
    return NUM_ROWS / statistics.median(times[1:])


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


class Bare:
    """A row of a `datasets` table -> inputs of one view; nothing is checked or drawn."""

    def __init__(self, folder: Path, processor: Qwen3VLProcessor) -> None:
        rows = [
            {"question": r["question"], "images": [str(folder / r["images"][0])]}
            for r in read_rows(folder)
        ]
        table = datasets.Dataset.from_list(rows)
        self.table = table.cast_column("images", datasets.List(datasets.Image()))
        self.processor = processor

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> Any:
        row = self.table[index]
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        image = row["images"][0].convert("RGB")
        return dict(encoded(self.processor, [{"role": "user", "content": content}], [image]))


def encoded(processor: Qwen3VLProcessor, messages: list[dict], images: Sequence[Any]) -> Any:
    """One prompt as tensors."""
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return processor(text=[text], images=list(images), return_tensors="pt")


def plain_view(processor: Qwen3VLProcessor, row: Any) -> object:
    """Our plain view of a row, encoded."""
    sample = make_sample(row, [])
    return encoded(processor, build_prompts(sample).plain, sample.plain.images)


def stream(folder: Path, processor: Qwen3VLProcessor, workers: int) -> EncodedStream:
    """Both views of the rows, drawn and encoded, as training reads them."""
    data = DataConfig(train=str(folder), annotations=[("boxes", "both")], workers=workers)
    model = ModelConfig(path=str(embedded_model("embedded:student_vl")))
    policy = load_policy(model, device="cpu", trainable=False)
    order = list(range(NUM_ROWS)) * (ROUNDS + 1)
    return EncodedStream(
        RunConfig(student=model, teacher=model, data=data), replace(policy.encoder, processor=processor),
        training_samples(data), order, workers=workers, ahead=16,
    )  # fmt: skip


def taken(rows: EncodedStream) -> None:
    """A pass over the rows."""
    assert not any(isinstance(item, BadRow) for item in rows.take(NUM_ROWS))


def main(argv: list[str]) -> None:
    """Times the parts and prints a line each."""
    parser = argparse.ArgumentParser(
        prog="bench.py data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args(argv).workers
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    make_rows(folder)
    processor = make_processor()
    rows, bare = read_rows(folder), Bare(folder, processor)
    ours = {count: stream(folder, processor, count) for count in (0, workers)}
    helped = DataLoader(
        bare, batch_size=None, num_workers=workers, prefetch_factor=8, persistent_workers=True,  # type: ignore[arg-type]
        multiprocessing_context="forkserver",
    )  # fmt: skip
    for name, passes in (
        ("bare datasets + processor, one view", lambda: [bare[n] for n in range(NUM_ROWS)]),
        ("ours, one view, no annotation", lambda: [plain_view(processor, row) for row in rows]),
        (
            "ours, sample with boxes drawn and written",
            lambda: [make_sample(row, [("boxes", "both")]) for row in rows],
        ),
        ("ours, that and both views encoded", partial(taken, ours[0])),
        (f"bare, {workers} workers", lambda: [None for _ in helped]),
        (f"ours, both views, {workers} workers", partial(taken, ours[workers])),
    ):
        print(f"{name:45} {rate(passes):7.1f} rows/s", flush=True)
    ours[workers].close()
    shutil.rmtree(folder)
