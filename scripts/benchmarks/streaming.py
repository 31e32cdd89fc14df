"""Makes a large image set and reports what memory and time training on it takes.

    dopd bench streaming jsonl 200000                  # 2 GiB of images, minutes
    dopd bench streaming tar 200000 --workers 2
    dopd bench streaming parquet 200000 --what read    # a shuffled pass, no training

`train` runs scripts/train.py for a few steps on 20 rows and on all of them; the difference of
their peaks is what the set costs. `read` makes every row, or --reads of them, once; memory is shown
in parts of the pass, where a thing that grows with the rows read would show. The set is deleted unless --folder
names a place for it.
"""

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dopd_vlm.config import DataConfig
from dopd_vlm.data.formats.exporters import write_parquet
from dopd_vlm.train import row_order

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "data" / "assets" / "photos" / "coffee.jpg"
POOL = 500
IMAGE_BYTES = 10_500
KINDS = {"jsonl": ".", "tar": "rows.tar", "parquet": "rows.parquet", "grouped": "rows.parquet"}
"""Form -> what of its folder read_rows is given. `grouped` has row groups of GROUP_ROWS."""
GROUP_ROWS = 5000
FEW = 20
PARTS = 5
SETTINGS = (
    "data.annotations=[[boxes, both]]", "evaluation.tasks=[]", "rollout.max_completion_length=16",
    "optim.max_steps=5", "checkpoint_every=1000", "name=run",
)  # fmt: skip
MIB = 2**20


def image_pool() -> list[bytes]:
    """JPEGs of 200 x 150 pixels, with noise after their end, up to IMAGE_BYTES less a number."""
    photo = Image.open(PHOTO).convert("RGB")
    files, padding = [], random.Random(0)
    for index in range(POOL):
        left, top = index % 100, index // 100 * 20
        buffer = io.BytesIO()
        photo.crop((left, top, left + 200, top + 150)).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue() + padding.randbytes(IMAGE_BYTES - 8 - buffer.tell()))
    return files


def rows_of_images(num_rows: int) -> Iterator[tuple[dict, bytes]]:
    """(row without its image, the image); no two images have the same bytes."""
    pool = image_pool()
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
    """Writes the set in one of the forms KINDS and returns what read_rows takes."""
    pairs = rows_of_images(num_rows)
    if kind == "tar":
        _write_tar(pairs, folder / KINDS[kind])
    elif kind == "jsonl":
        _write_folder(pairs, folder)
    else:
        path = (
            {**row, "annotations": json.dumps(row["annotations"]),
             "images": [{"bytes": data, "path": None}]}
            for row, data in pairs
        )  # fmt: skip
        write_parquet(path, folder / KINDS[kind])
        if kind == "grouped":
            _merge_groups(folder / KINDS[kind])
    return folder / KINDS[kind]


def _write_tar(pairs: Iterator[tuple[dict, bytes]], path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for row, data in pairs:
            for suffix, content in (("jpg", data), ("json", json.dumps(row).encode())):
                entry = tarfile.TarInfo(f"{row['uid']}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            tar.members = []


def _write_folder(pairs: Iterator[tuple[dict, bytes]], folder: Path) -> None:
    with (folder / "metadata.jsonl").open("w") as file:
        for index, (row, data) in enumerate(pairs):
            name = f"{index // 1000:04d}/{index % 1000:03d}.jpg"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
            file.write(json.dumps({**row, "images": [name]}) + "\n")


def _merge_groups(path: Path) -> None:
    """The same Parquet file in row groups of GROUP_ROWS."""
    small, large = pq.ParquetFile(path), path.with_suffix(".large")
    with pq.ParquetWriter(large, small.schema_arrow) as writer:
        for batch in small.iter_batches(GROUP_ROWS):
            writer.write_table(pa.Table.from_batches([batch]))
    large.rename(path)


def train_cost(source: Path, num_rows: int, workers: int) -> dict[str, Any]:
    """A few steps on the set and on FEW rows; MiB are peaks, seconds are until the first step."""
    few = source.parent / "few"
    few.mkdir(exist_ok=True)
    small = trained(make_set("jsonl", few, min(FEW, num_rows)), workers)
    large = trained(source, workers)
    over = {f"over_{name}": value - small[name] for name, value in large.items()}
    return {"workers": workers, "few": small, "all": large, **over}


def trained(source: Path, workers: int) -> dict[str, int]:
    """A run of scripts/train.py: seconds to its first step, its own peak and its workers', in MiB."""
    out = Path(tempfile.mkdtemp())
    command = [
        sys.executable, str(ROOT / "scripts" / "train.py"), str(ROOT / "scripts/recipes/demo.yaml"),
        f"data.train={source}", f"data.workers={workers}", f"output_dir={out}", *SETTINGS,
    ]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    first_step, peak, of_workers = 0.0, {"peak": 0, "anonymous": 0}, 0
    while process.poll() is None:
        time.sleep(0.05)
        if not first_step and "loss" in _text(out / "run" / "metrics.jsonl"):
            first_step = time.perf_counter() - start
        now = resident(process.pid)
        peak = {name: max(value, now.get(name, 0)) for name, value in peak.items()}
        of_workers = max(of_workers, _workers(process.pid))
    shutil.rmtree(out)
    if process.returncode:
        raise RuntimeError(f"training on {source} failed: {process.stderr.read().decode()[-2000:]}")
    return {
        "first_step_s": round(first_step),
        "peak_mib": peak["peak"] // MIB,
        "anonymous_mib": peak["anonymous"] // MIB,
        "workers_mib": of_workers // MIB,
    }


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def resident(pid: int | str) -> dict[str, int]:
    """Resident bytes of a process, empty once it ended: all, what is no mapped file, the highest."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    lines = dict(line.split(":", 1) for line in status.splitlines())
    names = {"rss": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {n: int(lines[key].split()[0]) * 1024 for n, key in names.items() if key in lines}


def _workers(pid: int) -> int:
    """Bytes of all processes below a process; pages that they share are counted once."""
    try:
        below = psutil.Process(pid).children(recursive=True)
        return sum(process.memory_full_info().pss for process in below)
    except psutil.Error:
        return 0  # one of them ended meanwhile


def read_cost(source: Path, num_rows: int) -> dict[str, Any]:
    """`num_rows` rows made into samples, shuffled: rows a second, MiB over a pass over FEW rows."""
    # Not above: it loads the evaluation too, which making a set does not need.
    from dopd_vlm.scripts.wiring.samples import training_samples

    def passed(path: Path, count: int) -> tuple[float, dict[str, list[int]]]:
        samples = training_samples(DataConfig(train=str(path), annotations=[("boxes", "both")]))
        memory: dict[str, list[int]] = {"rss": [], "anonymous": []}
        start = time.perf_counter()
        for done, row in enumerate(row_order(len(samples), 0, 0, count), start=1):
            assert samples[row].plain.images
            if done % max(1, count // PARTS) == 0:
                now = resident("self")
                memory = {name: [*mib, now[name] // MIB] for name, mib in memory.items()}
        return time.perf_counter() - start, memory

    few = source.parent / "few"
    few.mkdir(exist_ok=True)
    _, before = passed(make_set("jsonl", few, FEW), FEW)
    start = time.perf_counter()
    seconds, memory = passed(source, num_rows)
    return {
        "over_peak_mib": resident("self")["peak"] // MIB - before["rss"][-1],
        "open_s": round(time.perf_counter() - start - seconds, 1),
        "rows_per_s": round(num_rows / seconds),
        **{f"over_{n}_mib": [m - before[n][-1] for m in mib] for n, mib in memory.items()},
    }


def main(argv: list[str]) -> None:
    """Makes the set, measures, reports as JSON."""
    parser = argparse.ArgumentParser(
        prog="bench.py streaming",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("rows", type=int)
    parser.add_argument("--what", choices=("train", "read"), default="train")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--reads", type=int, help="rows of the pass; all without it")
    parser.add_argument("--folder", type=Path, help="keeps the set here, or takes the one it holds")
    args = parser.parse_args(argv)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="streaming-"))
    source = folder / "set" / KINDS[args.kind]
    try:
        if not source.exists():
            (folder / "set").mkdir(parents=True)
            # In a process of its own, whose memory is not that of the pass.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(make_set, args.kind, folder / "set", args.rows).result()
        measured = (
            train_cost(source, args.rows, args.workers)
            if args.what == "train"
            else read_cost(source, args.reads or args.rows)
        )
        print(json.dumps({"kind": args.kind, "rows": args.rows, **measured}))
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
