"""Importers: each documented format gives rows that make good Samples."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from dopd_vlm.data.importers import IMPORTERS, VISION_OPD_CONTEXT, import_rows
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.store import write_rows
from dopd_vlm.data.views import make_sample

SCRIPT = Path(__file__).parents[1] / "scripts" / "import_rows.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, colour in {"a.png": "red", "b.png": "blue"}.items():
        Image.new("RGB", (60, 40), colour).save(tmp_path / name)
    return tmp_path


def imported(kind, source, folder, annotations=()):
    rows = IMPORTERS[kind](source, "what is this ?")
    written, skipped = write_rows(rows, folder / "out", root=folder)
    made = read_rows(folder / "out")
    assert (written, skipped) == (len(made), [])
    return [make_sample(row, list(annotations), coords="pixel") for row in made]


def write(path, value):
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value))
    return path


def test_coco(folder) -> None:
    data = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "cup"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 20],
             "segmentation": [[1, 2, 31, 2, 31, 22]]},
            {"image_id": 8, "caption": "all blue"},
        ],
    }  # fmt: skip
    kinds = ["boxes", "masks", "captions"]
    first, second = imported("coco", write(folder / "i.json", data), folder, kinds)
    assert first.uid == "7" and first.question == "what is this ?"
    assert first.privileged.context == (
        'boxes:\n[{"bbox_2d": [1, 2, 31, 22], "label": "cup"}]\n'
        'masks:\n[{"polygon_2d": [1, 2, 31, 2, 31, 22], "label": "cup"}]'
    )
    assert (second.answer, second.privileged.context) == ("all blue", "captions:\nall blue")


def test_llava_makes_a_row_per_question_with_its_history(folder) -> None:
    turns = [
        {"from": "human", "value": "<image>\nwhat colour ?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "sure ?"},
        {"from": "gpt", "value": "yes"},
    ]
    data = [{"id": "x", "image": "a.png", "conversations": turns}]
    first, second = imported("llava", write(folder / "l.json", data), folder)
    assert (first.uid, first.question, first.answer) == ("x-0", "<image>what colour ?", "red")
    assert (second.question, second.answer) == ("<image>sure ?", "yes")
    assert [turn["content"] for turn in second.history] == ["what colour ?", "red"]
    assert second.plain.images[0].getpixel((3, 3)) == (255, 0, 0)


def test_trl_prompt_and_completion(folder) -> None:
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hm ?"}]}]
    data = [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": "red"}],
         "images": ["a.png"], "privileged_context": "look"},
        {"prompt": "plain ?", "completion": "yes"},
    ]  # fmt: skip
    first, second = imported("trl", write(folder / "t.jsonl", data), folder)
    assert (first.question, first.answer) == ("<image>hm ?", "red")
    assert first.privileged.context == "look"
    assert (second.question, second.answer, second.plain.images) == ("plain ?", "yes", ())


def test_ms_swift(folder) -> None:
    def turns(text):
        return [{"role": "user", "content": text}, {"role": "assistant", "content": "red"}]

    data = [
        {"messages": turns("<image>where is <ref-object> ?"), "images": ["a.png"],
         "objects": {"ref": ["the cup"], "bbox": [[10, 5, 40, 25]]}, "teacher_prompt": "see",
         "teacher_images": ["b.png"]},
        {"messages": turns("<image>so ?"), "images": ["a.png"], "teacher_images": []},
    ]  # fmt: skip
    first, second = imported("ms_swift", write(folder / "s.jsonl", data), folder, ["boxes"])
    assert (first.question, first.answer) == ("<image>where is the cup ?", "red")
    assert '"bbox_2d": [10, 5, 40, 25], "label": "the cup"' in first.privileged.context
    assert first.privileged.context.startswith("see\n")
    assert first.privileged.images[0].getpixel((3, 3)) == (0, 0, 255)
    assert second.privileged.images == () and len(second.plain.images) == 1
    bad = [{**data[0], "objects": {"ref": ["x"], "bbox": [[0, 0, 1, 1]], "bbox_type": "norm1"}}]
    with pytest.raises(ValueError, match="bbox_type 'norm1'"):
        list(IMPORTERS["ms_swift"](write(folder / "bad.jsonl", bad), ""))


def test_verl_parquet_with_bytes(folder) -> None:
    picture = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    row = {
        "data_source": "geo", "prompt": [{"role": "user", "content": "<image>so ?"}],
        "images": [picture], "reward_model": {"ground_truth": "4"},
    }  # fmt: skip
    datasets.Dataset.from_list([row]).to_parquet(str(folder / "v.parquet"))
    (sample,) = imported("verl", folder / "v.parquet", folder)
    assert (sample.question, sample.answer) == ("<image>so ?", "4")
    assert sample.source["source"] == "geo"
    assert sample.plain.images[0].getpixel((3, 3)) == (255, 0, 0)


def test_vision_opd(folder) -> None:
    data = [{"problem": "<image>hm ?", "images": ["a.png"], "teacher_images": ["b.png"],
             "answer": "B", "extra_info": {}}]  # fmt: skip
    (sample,) = imported("vision_opd", write(folder / "o.jsonl", data), folder)
    assert sample.privileged.context == VISION_OPD_CONTEXT
    assert sample.privileged.images[0].getpixel((3, 3)) == (0, 0, 255)
    assert sample.plain.images[0].getpixel((3, 3)) == (255, 0, 0)


def test_a_folder_of_pictures(folder) -> None:
    (folder / "pics" / "cat").mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(folder / "pics" / "cat" / "1.png")
    written, _ = write_rows(
        IMPORTERS["folder"](folder / "pics", "what ?"), folder / "out", root=folder / "pics"
    )
    (row,) = read_rows(folder / "out")
    assert written == 1 and (row["uid"], row["answer"]) == ("cat-1", "cat")


def test_the_script_lists_what_it_left_out_and_overwrites_nothing(folder) -> None:
    turns = [{"from": "human", "value": "x ?"}]
    data = [
        {"id": 1, "image": "a.png", "conversations": turns},
        {"id": 2, "image": "../no.png", "conversations": turns},
    ]
    source = write(folder / "l.json", data)
    command = [sys.executable, str(SCRIPT), "llava", str(source), "--out", str(folder / "rows")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "1 rows in" in done.stdout, "1 skipped" in done.stdout) == (
        1,
        True,
        True,
    )
    (left_out,) = read_rows(folder / "rows" / "skipped.jsonl")
    assert left_out["uid"] == "2-0" and "must be relative" in left_out["reason"]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "exists already" in again.stderr


@pytest.mark.parametrize("kind", ["coco", "llava", "verl", "vision_opd", "ms_swift"])
def test_a_file_of_another_format_is_refused(folder, kind) -> None:
    source = write(folder / ("x.json" if kind in ("coco", "llava") else "x.jsonl"), [{"uid": "a"}])
    with pytest.raises(ValueError, match=f"is not in the format '{kind}'"):
        list(import_rows(kind, source, ""))


def test_unknown_formats_and_absent_files_are_refused(folder) -> None:
    with pytest.raises(ValueError, match=r"unknown format 'voc'; known: coco"):
        list(import_rows("voc", folder, ""))
    with pytest.raises(ValueError, match=r"no\.json does not exist"):
        list(import_rows("coco", folder / "no.json", ""))
