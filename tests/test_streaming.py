"""A set on the disk trains in bounded memory, by position, from any thread, from any step."""

import json
import pickle
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.sources.tables import ParquetTable
from dopd_vlm.scripts.benchmarks.streaming import IMAGE_BYTES, make_set
from dopd_vlm.train import row_order

SCRIPTS = Path(__file__).parents[1] / "scripts"

KINDS = ("parquet", "tar", "jsonl")


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    return make_set(request.param, tmp_path_factory.mktemp(request.param), 600)


def image(row):
    found = row["images"][0]
    root = Path(row["origin"]["root"])
    return found["bytes"] if isinstance(found, dict) else (root / found).read_bytes()


def test_every_row_is_found_by_position(source) -> None:
    rows = read_rows(source)
    assert len(rows) == 600
    for index in row_order(600, 1, 0, 600):
        assert rows[index]["uid"] == f"row-{index:08d}"
        assert image(rows[index])[-8:] == index.to_bytes(8, "little")


def test_threads_do_not_disturb_each_other(source) -> None:
    rows = read_rows(source)
    order = row_order(600, 2, 0, 1200)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: (rows[index]["uid"], image(rows[index])[-8:]), order))
    assert found == [(f"row-{index:08d}", index.to_bytes(8, "little")) for index in order]


def test_a_parquet_file_has_one_reader_at_a_time(tmp_path) -> None:
    table = ParquetTable([make_set("parquet", tmp_path, 600)])
    inside, most = [], []

    class Slow:
        """The real file, looking whether it is alone."""

        def __init__(self, file):
            self.file = file

        def read_row_group(self, number, **options):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)
            return self.file.read_row_group(number, **options)

    table._groups = [(Slow(file), number) for file, number in table._groups]
    table._features |= {id(file): table._features[id(file.file)] for file, _ in table._groups}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda index: table[index]["uid"], range(0, 600, 100)))
    assert found == [f"row-{index:08d}" for index in range(0, 600, 100)]
    assert most == [1] * 6


def test_rows_travel_to_another_process_without_what_they_hold_open(source) -> None:
    rows = read_rows(source)[5:]
    assert rows[3]["uid"] == "row-00000008"
    sent = pickle.dumps(rows)
    again = pickle.loads(sent)
    assert [again[n]["uid"] for n in (0, 594)] == ["row-00000005", "row-00000599"]
    assert image(again[3]) == image(rows[3]) and len(again) == 595
    assert len(sent) < 100 * 600


def test_a_resumed_run_reads_the_rows_that_would_have_come(source) -> None:
    def uids(step, num_steps):
        rows = read_rows(source)
        return [
            [rows[index]["uid"] for index in row_order(len(rows), 5, s * 70, 70)]
            for s in range(step, step + num_steps)
        ]

    whole = uids(0, 12)  # over the end of the first pass
    assert uids(7, 5) == whole[7:]
    first_pass = [uid for step in whole for uid in step][:600]
    assert len(set(first_pass)) == 600


def test_opening_and_reading_holds_no_images(source) -> None:
    tracemalloc.start()
    rows = read_rows(source)
    for index in row_order(600, 0, 0, 600):
        assert rows[index]["uid"]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 60 * IMAGE_BYTES


def measured(kind: str, what: str) -> dict:
    """What `bench.py streaming` says of 20,000 rows, 200 MiB of images."""
    command = [sys.executable, str(SCRIPTS / "bench.py"), "streaming", kind, "20000"]
    done = subprocess.run([*command, "--what", what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_pass_over_many_rows(kind) -> None:
    found = measured(kind, "read")["over_rss_mib"]
    assert len(found) == 5 and max(found) < 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_training_on_many_rows(kind) -> None:
    assert measured(kind, "train")["over_peak_mib"] < 100
