"""What a run writes beside its checkpoints: the trackers' own files, read back; resume; harmless failures."""

import importlib.util
import json
import logging
import os
import socket
import sqlite3
import struct
import tempfile
import time
from pathlib import Path

# trackio reads its folder when it is first imported.
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio"))

import pytest
import tiny
from test_train import make_config

from dopd_vlm.config import read_config
from dopd_vlm.jsonl import read_lines
from dopd_vlm.tracking import observer, tracker
from dopd_vlm.tracking.observer import GAP_BINS, gap_edges, token_counts
from dopd_vlm.train import train

SAMPLES = [tiny.text_sample(f"row{i}") for i in range(5)]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.save_pair(tmp_path_factory.mktemp("models"), tiny.text_policy)


@pytest.fixture
def no_network(monkeypatch):
    """Only this machine can be reached."""
    connect = socket.socket.connect

    def local(self, address):
        where = address[0] if isinstance(address, tuple) else "local"
        assert where in ("local", "localhost", "127.0.0.1", "::1"), f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def tracked(models, out, *names, monkeypatch=None):
    config = make_config(models, out, steps=2, every=2, tracking=list(names))
    return train(config, SAMPLES, score_answer=lambda text, sample: 0.5).run_dir


def logged(run_dir):
    """{(name, step): value} of metrics.jsonl."""
    return {
        (name, line["step"]): value
        for line in read_lines(run_dir / "metrics.jsonl")
        for name, value in line.items()
        if name != "step"
    }


def test_tensorboard_has_every_scalar_and_the_token_maps(models, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tracked(models, tmp_path, "tensorboard")
    events = EventAccumulator(
        str(run_dir / "tensorboard" / "dopd_vlm"), size_guidance={"scalars": 0, "tensors": 0}
    )
    events.Reload()
    found = {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }
    expected = logged(run_dir)
    assert (
        found.keys() == expected.keys()
        and ("share/lh", 2) in found
        and ("probe/plain_accuracy", 0) in found
    )
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key
    texts = events.Tensors("token_maps/text_summary")
    assert [event.step for event in texts] == [0, 2]
    assert b"**" in texts[0].tensor_proto.string_val[0]


def test_trackio_has_every_scalar_and_the_token_maps_without_a_network(
    models, tmp_path, no_network, capfd
):
    run_dir = tracked(models, tmp_path, "trackio")
    (path,) = Path(os.environ["TRACKIO_DIR"]).glob("dopd_vlm*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select step, metrics from metrics where run_name = 'run'").fetchall()
    found = {(name, step): value for step, text in rows for name, value in json.loads(text).items()}
    pages = {step: value for (name, step), value in found.items() if name == "token_maps"}
    for key, value in logged(run_dir).items():
        assert found[key] == pytest.approx(value, rel=1e-9), key
    assert sorted(pages) == [0, 2] and all(
        page["_type"] == "trackio.html" for page in pages.values()
    )
    assert "dashboard" not in capfd.readouterr().out.lower()


def test_wandb_writes_an_offline_run_with_every_scalar(models, tmp_path, monkeypatch, no_network):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_dir = tracked(models, tmp_path, "wandb")
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    expected = logged(run_dir)
    # wandb's service, a process of its own, may still be writing when the run is finished.
    deadline = time.monotonic() + 30
    values = wandb_scalars(path)
    while not expected.keys() <= values.keys() and time.monotonic() < deadline:
        time.sleep(0.1)
        values = wandb_scalars(path)
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, rel=1e-9), key
    pages = list(run_dir.glob("wandb/offline-run-*/files/media/html/*.html"))
    assert len(pages) == 2 and "tm-completion" in pages[0].read_text()


def wandb_scalars(path):
    """{(name, step): value} of the whole records that wandb's log holds by now."""
    from wandb.proto import wandb_internal_pb2

    scalars = {}
    for data in leveldb_records(path.read_bytes()[7:], first_block=32768 - 7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {
            "/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item
        }
        scalars |= {(name, values.get("_step")): value for name, value in values.items()}
    return scalars


def leveldb_records(content, *, first_block):
    """Records of wandb's log: blocks of 32 KiB of [crc 4, length 2, kind 1, data], kind 1 a whole record."""
    at, room, record = 0, first_block, b""
    while at < len(content):
        if room < 7:  # the rest of a block is padding
            at, room = at + room, 32768
            continue
        if at + 7 > len(content):
            return
        length, kind = struct.unpack_from("<HB", content, at + 4)
        if at + 7 + length > len(content):  # not yet written to its end
            return
        record += content[at + 7 : at + 7 + length]
        at, room = at + 7 + length, room - 7 - length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_a_missing_package_is_named_before_anything_is_loaded(models, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        tracker.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    with pytest.raises(ValueError, match=r"tracking=wandb .*dopd-vlm\[trackers\]"):
        train(make_config(models, tmp_path, tracking=["tensorboard", "wandb"]), SAMPLES)
    assert not list(tmp_path.iterdir())


def test_tracking_takes_a_name_or_a_list():
    recipe = ROOT / "scripts/recipes/demo.yaml"
    assert read_config(recipe, ["tracking=tensorboard"]).tracking == ["tensorboard"]
    assert read_config(recipe, ["tracking=[wandb, trackio]"]).tracking == ["wandb", "trackio"]


def test_a_crash_in_reporting_is_logged_and_the_run_goes_on(models, tmp_path, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no more ink")

    monkeypatch.setattr(observer, "token_maps", broken)
    monkeypatch.setattr(observer, "write_report", broken)
    with caplog.at_level(logging.ERROR):
        result = train(make_config(models, tmp_path, steps=2), SAMPLES)
    assert result.step == 2
    messages = [record.getMessage() for record in caplog.records]
    assert "the token maps failed; the run goes on" in messages
    assert "report.html failed; the run goes on" in messages
    assert "no more ink" in caplog.text


def test_without_plotly_one_line_says_so(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(observer.importlib.util, "find_spec", lambda name: None)
    result = train(make_config(models, tmp_path, steps=2), SAMPLES)
    assert result.step == 2 and not (result.run_dir / "report.html").exists()
    said = capsys.readouterr().out.replace("\n", "")
    assert said.count("no report.html") == 1 and "dopd-vlm[viz]" in said


def test_resume_forgets_what_came_after_the_checkpoint_and_keeps_the_probes(models, tmp_path):
    first = train(make_config(models, tmp_path, steps=4), SAMPLES).run_dir
    probes = (first / "probes.json").read_text()
    maps, histograms = (
        read_lines(first / "token_maps.jsonl"),
        read_lines(first / "histograms.jsonl"),
    )
    assert [m["step"] for m in maps if m["uid"] == maps[0]["uid"]] == [0, 2, 4]
    assert [h["step"] for h in histograms] == [1, 2, 4]
    newest = first / "checkpoints" / "step_000004"
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.1')  # a line that a killed run left half-written
    train(make_config(models, tmp_path, steps=4, resume=True), SAMPLES)
    assert read_lines(first / "token_maps.jsonl") == maps
    assert read_lines(first / "histograms.jsonl") == histograms
    assert (first / "probes.json").read_text() == probes
    environment = json.loads((first / "environment.json").read_text())
    assert {"command", "resumed_by"} <= environment.keys()


def test_histograms_count_every_token_once_in_its_bin():
    import torch

    logp = torch.tensor(
        [[-0.1, -0.1], [-3.0, -0.5], [-40.0, -0.01], [-0.01, -2.0], [0.0, 0.0]], dtype=torch.float64
    )
    gap, joint = token_counts(logp)
    assert int(gap.sum()) == int(joint.sum()) == 5
    edges = gap_edges().tolist()
    for value in (2.5, 1.99):
        at = next(i for i in range(GAP_BINS) if edges[i] <= value < edges[i + 1])
        assert gap[at] == 1
    assert gap[0] == 2 and gap[-1] == 1  # zero gaps, and one beyond the range
    assert (
        joint[-1, -1] == 1 and joint[22, 22] == 1
    )  # exp(-0.1) = 0.905, in the bin of 0.88 to 0.92
    assert joint[1, 15] == 1  # exp(-3) = 0.0498, exp(-0.5) = 0.607
