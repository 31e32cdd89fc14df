"""`bench.py loss` on tiny sizes: the table in pieces, the reason for what is left out, the memory of a process."""

import json

import pytest
import torch

from dopd_vlm.scripts import bench

SIZES = ["--vocab", "64", "--hidden", "8", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def measure(tmp_path, capsys):
    """What `bench loss` prints and the report it writes; the number of threads is put back."""
    threads = torch.get_num_threads()

    def call(*options):
        bench.main(["loss", *SIZES, "--out", str(tmp_path), *options])
        return capsys.readouterr().out, json.loads((tmp_path / "loss.json").read_text())

    yield call
    torch.set_num_threads(threads)


def test_a_table_in_pieces(tmp_path, measure):
    options = ["--repeats", "1", "--dense-limit-mib", "0"]
    names = ["--variants", "ours dopd", "dense autograd"]
    printed, first = measure("--tokens", "512", "--only", "time", *options, *names)
    assert "dense autograd  skipped: needs about 1 MiB" in printed
    _, report = measure("--tokens", "512", "--only", "memory", *options, *names[:2])
    row = report["rows"]["512 ours dopd"]
    assert row["seconds"] == first["rows"]["512 ours dopd"]["seconds"]
    assert row["peak_mib"] > 0
    assert row["products"] == pytest.approx(5.0, abs=1.0) and row["over_limit"] > 0
    assert report["rows"]["512 dense autograd"]["skipped"]
    assert report["rows"]["512 limit"]["over_limit"] == pytest.approx(1.0)
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    # On other terms it is another table.
    _, other = measure("--tokens", "128", "--hidden", "4", "--only", "time", *options, *names[:2])
    assert set(other["rows"]) == {"128 ours dopd", "128 limit"}
