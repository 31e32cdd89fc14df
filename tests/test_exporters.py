"""Exports read back by our own importers, and the teacher's side never enters the prompt."""

import datasets
import pytest
from PIL import Image

from dopd_vlm.data.exporters import to_trl, to_verl, with_bytes, write_parquet
from dopd_vlm.data.importers import import_rows
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_sample


@pytest.fixture
def sample(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    picture = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    row = {
        "uid": "a", "images": [picture], "question": "left <image> right ?", "answer": "red",
        "system": "be brief", "meta": {"source": "mine"},
        "annotations": {"boxes": [{"bbox": [10, 5, 20, 15], "label": "secret thing"}]},
    }  # fmt: skip
    return make_sample(row, [("boxes", "both")])


def test_trl_rows_come_back_as_the_same_question(sample) -> None:
    row = to_trl(sample)
    assert "secret" not in str(row["prompt"]) and "secret" in row["privileged_context"]
    back = make_sample({"uid": "a", "messages": row["prompt"], **row}, [])
    assert (back.question, back.system, back.answer) == ("left <image> right ?", "be brief", "red")
    assert back.plain.images[0].tobytes() == sample.plain.images[0].tobytes()
    assert back.privileged.context == sample.privileged.context


def test_verl_parquet_comes_back_with_both_views(sample, tmp_path) -> None:
    assert "secret" not in str(to_verl(sample)["prompt"])
    write_parquet([to_verl(sample)], tmp_path / "v.parquet")
    (row,) = import_rows("verl", tmp_path / "v.parquet", "")
    back = make_sample(row, [])
    assert (back.question, back.system, back.answer) == ("left <image> right ?", "be brief", "red")
    assert back.source["source"] == "mine"
    assert back.plain.images[0].tobytes() == sample.plain.images[0].tobytes()
    assert back.privileged.images[0].tobytes() == sample.privileged.images[0].tobytes()


def test_a_parquet_file_of_rows_holds_its_pictures(tmp_path, sample) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    sample.plain.images[0].save(folder / "p.png")
    (folder / "metadata.jsonl").write_text(
        '{"uid": "x", "images": ["p.png"], "question": "q ?", "annotations": {"captions": ["c"]}}'
    )
    write_parquet([with_bytes(row) for row in read_rows(folder)], tmp_path / "x.parquet")
    (folder / "p.png").unlink()
    back = make_sample(read_rows(tmp_path / "x.parquet")[0], ["captions"])
    assert back.plain.images[0].tobytes() == sample.plain.images[0].tobytes()
    assert back.privileged.context == "captions:\nc"
