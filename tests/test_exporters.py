"""Exports read back by our own importers, and the teacher's side never enters the prompt."""

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dopd_vlm.data.formats.exporters import (
    EXPORTERS,
    export,
    to_trl,
    to_verl,
    with_bytes,
    write_parquet,
)
from dopd_vlm.data.formats.importers import import_rows
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_sample


@pytest.fixture
def sample(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    image = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    row = {
        "uid": "a", "images": [image], "question": "left <image> right ?", "answer": "red",
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


def test_a_parquet_file_of_rows_holds_its_images(tmp_path, sample) -> None:
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


def test_rows_of_other_keys_share_a_parquet_file_and_its_row_groups_are_small(tmp_path) -> None:
    image = Image.new("RGB", (8, 6), "red")
    rows = [
        {"uid": str(n), "images": [image], "question": f"{n} ?", "choices": None,
         "annotations": {"captions": ["c"]} if n % 2 else {"boxes": [{"bbox": [1, 1, 2, 2]}]},
         "meta": {"split": "test" if n > 200 else "train"}}
        for n in range(250)
    ]  # fmt: skip
    assert write_parquet(map(with_bytes, rows), tmp_path / "x.parquet") == 250
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 3
    test = read_rows(tmp_path / "x.parquet", split="test")
    assert [row["uid"] for row in test] == [str(n) for n in range(201, 250)]
    sample = make_sample(test[0], ["captions", "boxes"])
    assert sample.privileged.context == "captions:\nc"
    assert sample.plain.images[0].getpixel((2, 2)) == (255, 0, 0)
    assert datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"))[3]["images"][0].size == (8, 6)


def test_columns_or_types_that_come_late_are_refused_not_dropped(tmp_path) -> None:
    rows = [{"uid": str(n), "question": "?"} for n in range(120)]
    with pytest.raises(ValueError, match=r"row 111 has columns that the first 100 rows lack: new"):
        write_parquet([*rows[:110], {**rows[110], "new": 1}], tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="values of other types"):
        write_parquet([*rows[:110], {**rows[110], "question": [1]}], tmp_path / "x.parquet")
    with pytest.raises(
        ValueError, match=r"rows 101 to 120 have values of other types.*question is"
    ):
        write_parquet(
            [*rows[:100], *({**r, "question": 7} for r in rows[100:])], tmp_path / "x.parquet"
        )
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize("kind", list(EXPORTERS))
def test_every_form_is_written_and_bad_rows_are_told(kind, tmp_path, sample) -> None:
    row = {"uid": "a", "images": [sample.plain.images[0]], "question": "q ?", "answer": "red",
           "annotations": {"captions": ["a secret caption"]}}  # fmt: skip
    later = {**row, "uid": "c", "system": "be brief"}  # a column that the first row lacks
    rows = [row, {**row, "uid": "b", "question": ""}, later]
    written, skipped = export(kind, rows, ["captions"], tmp_path / "x.parquet")
    assert (written, [bad.uid for bad in skipped]) == (2, ["b"])
    importer = {"parquet": "trl"}.get(kind, kind)
    back, last = import_rows(importer, tmp_path / "x.parquet", "")
    assert make_sample(last, []).system == "be brief"
    made = make_sample(back, ["captions"] if kind == "parquet" else [])
    assert made.plain.images[0].tobytes() == sample.plain.images[0].tobytes()
    assert (made.question, made.answer) == ("<image>q ?" if kind != "parquet" else "q ?", "red")
    assert "secret" not in made.question
    if kind != "verl":  # verl has no place that our importer reads privileged text from
        assert made.privileged.context == "captions:\na secret caption"


def test_unknown_forms_and_types_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"unknown form 'csv'; known: parquet, trl, verl"):
        export("csv", [], [], tmp_path / "x")
    with pytest.raises(ValueError, match="unknown annotation type 'boxs'"):
        export("trl", [], ["boxs"], tmp_path / "x")
    with pytest.raises(ValueError, match="no row to write"):
        export("trl", [], [], tmp_path / "x")
