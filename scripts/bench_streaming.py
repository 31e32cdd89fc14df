"""Makes a large picture set and reports the memory and speed of a shuffled pass over it.

    python scripts/bench_streaming.py parquet 200000     # the full size: 2 GiB of pictures, minutes

Prints the memory over that of the loaded student, in MiB, and deletes the set.
"""

import io
import json
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from dopd_vlm.config import DataConfig, ModelConfig
from dopd_vlm.data.embedded import embedded_model
from dopd_vlm.data.exporters import write_parquet
from dopd_vlm.encode import encode_prompt
from dopd_vlm.models import load_policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.train import row_order
from dopd_vlm.types import Sample

PHOTO = Path(__file__).parents[1] / "data" / "assets" / "photos" / "coffee.jpg"
POOL = 500
PICTURE_BYTES = 10_500
ENCODE_EVERY = 20


def pictures() -> list[bytes]:
    """JPEGs of 200 x 150 pixels, with noise behind their end up to PICTURE_BYTES less a number."""
    photo = Image.open(PHOTO).convert("RGB")
    made, padding = [], random.Random(0)
    for index in range(POOL):
        left, top = index % 100, index // 100 * 20
        buffer = io.BytesIO()
        photo.crop((left, top, left + 200, top + 150)).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue() + padding.randbytes(PICTURE_BYTES - 8 - buffer.tell()))
    return made


def rows_of_pictures(num_rows: int) -> Iterator[tuple[dict, bytes]]:
    """(row without its picture, the picture); no two pictures have the same bytes."""
    pool = pictures()
    for index in range(num_rows):
        row = {
            "uid": f"row-{index:08d}",
            "question": "What is in the box ?",
            "answer": "a cup",
            "annotations": {
                "boxes": [{"bbox": [20 + n, 30, 80, 60], "label": f"thing {n}"} for n in range(4)]
            },
        }
        yield row, pool[index % POOL] + index.to_bytes(8, "little")


def make_set(kind: str, folder: Path, num_rows: int) -> Path:
    """Writes the set as `parquet`, `tar` or `jsonl` with picture files."""
    pairs = rows_of_pictures(num_rows)
    if kind == "parquet":
        made = (
            {**row, "annotations": json.dumps(row["annotations"]),
             "images": [{"bytes": data, "path": None}]}
            for row, data in pairs
        )  # fmt: skip
        write_parquet(made, folder / "rows.parquet")
        return folder / "rows.parquet"
    if kind == "tar":
        with tarfile.open(folder / "rows.tar", "w") as tar:
            for row, data in pairs:
                for suffix, content in (("jpg", data), ("json", json.dumps(row).encode())):
                    entry = tarfile.TarInfo(f"{row['uid']}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                tar.members = []
        return folder / "rows.tar"
    with (folder / "metadata.jsonl").open("w") as file:
        for index, (row, data) in enumerate(pairs):
            name = f"{index // 1000:04d}/{index % 1000:03d}.jpg"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
            file.write(json.dumps({**row, "images": [name]}) + "\n")
    return folder


def resident_mib() -> dict[str, float]:
    """Resident memory of this process: all of it, and the part that is no mapped file."""
    status = Path("/proc/self/status").read_text()
    found = dict(
        line.split(":", 1) for line in status.splitlines() if line.startswith(("VmRSS", "RssAnon"))
    )
    return {name: int(value.split()[0]) / 1024 for name, value in found.items()}


def shuffled_pass(source: Path, num_rows: int) -> dict[str, float]:
    """One shuffled epoch through samples and, every ENCODE_EVERY rows, the processor; in MiB."""
    policy = load_policy(
        ModelConfig(path=str(embedded_model("embedded:student_vl"))), device="cpu", trainable=True
    )
    encode = partial(encode_prompt, policy)

    # Not above: it loads the evaluation too, which making a set does not need.
    from build import training_samples

    def use(sample: Sample, *, encoded: bool) -> None:
        if encoded:
            pair = build_prompts(sample)
            encode(pair.plain, uid=sample.uid)
            encode(pair.privileged, uid=sample.uid)

    def opened(path: Path) -> Sequence[Sample]:
        return training_samples(DataConfig(train=str(path), annotations=[("boxes", "both")]))

    small = source.parent / "few"
    small.mkdir(exist_ok=True)
    for sample in opened(make_set("jsonl", small, 20)):
        use(sample, encoded=True)
    before = resident_mib()
    start = time.perf_counter()
    samples = opened(source)
    open_s = time.perf_counter() - start
    peak = dict(before)
    start = time.perf_counter()
    for count, index in enumerate(row_order(len(samples), 0, 0, num_rows)):
        use(samples[index], encoded=count % ENCODE_EVERY == 0)
        if count % 100 == 0:
            peak = {name: max(peak[name], value) for name, value in resident_mib().items()}
    return {
        "rows": len(samples),
        "open_s": round(open_s, 1),
        "rows_per_s": round(num_rows / (time.perf_counter() - start)),
        "model_rss_mib": round(before["VmRSS"]),
        "over_rss_mib": round(peak["VmRSS"] - before["VmRSS"]),
        "over_anonymous_mib": round(peak["RssAnon"] - before["RssAnon"]),
    }


def main() -> None:
    """Makes the set, passes over it, reports as JSON."""
    kind, num_rows = sys.argv[1], int(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix="streaming-"))
    try:
        (folder / "set").mkdir()
        source = make_set(kind, folder / "set", num_rows)
        print(json.dumps({"kind": kind, **shuffled_pass(source, num_rows)}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
