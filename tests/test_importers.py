"""Importers: each documented format gives rows that make good Samples."""

import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from dopd_vlm.data.formats.chat import VISION_OPD_CONTEXT
from dopd_vlm.data.formats.folder import write_rows
from dopd_vlm.data.formats.importers import IMPORTERS, import_folder, import_rows
from dopd_vlm.data.images import load_image
from dopd_vlm.data.rows import read_rows
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
    image = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    row = {
        "data_source": "geo", "prompt": [{"role": "user", "content": "<image>so ?"}],
        "images": [image], "reward_model": {"ground_truth": "4"},
    }  # fmt: skip
    datasets.Dataset.from_list([row]).to_parquet(str(folder / "v.parquet"))
    (sample,) = imported("verl", folder / "v.parquet", folder)
    assert (sample.question, sample.answer) == ("<image>so ?", "4")
    assert sample.source["source"] == "geo"
    assert sample.plain.images[0].getpixel((3, 3)) == (255, 0, 0)


BAD_COCO = {
    "half": (b'{"images": [', "cannot be read as JSON"),
    "not UTF-8": ('{"images": [], "x": "\u00e9"}'.encode("latin-1"), "cannot be read as JSON"),
    "a list": (b"[]", "not in the format 'coco'"),
    "no images": (b'{"annotations": []}', "not in the format 'coco'.*images"),
    "no file": (b'{"images": [{"id": 1}]}', "not in the format 'coco'.*file_name"),
    "no image's id": (
        b'{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"bbox": [1, 1, 2, 2]}]}',
        "not in the format 'coco'.*image_id",
    ),
    "an id twice": (
        b'{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]}',
        "image id 1 is both 'a.png' and 'b.png'",
    ),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_what_is_no_coco_is_told_and_leaves_no_rows(folder, case) -> None:
    content, message = BAD_COCO[case]
    (folder / "c.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_folder("coco", folder / "c.json", folder / "out", images=folder)
    assert not (folder / "out" / "metadata.jsonl").exists()


def test_coco_annotations_of_unlisted_images_are_counted(folder) -> None:
    boxes = [{"image_id": n, "bbox": [1, 1, 2, 2], "category_id": 1} for n in (1, 7, 7)]
    data = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": boxes}
    (folder / "c.json").write_text(json.dumps(data))
    with pytest.warns(UserWarning, match="2 annotations of unlisted images"):
        written, skipped = import_folder("coco", folder / "c.json", folder / "out", images=folder)
    assert (written, skipped) == (1, [])


def test_vision_opd(folder) -> None:
    data = [{"problem": "<image>hm ?", "images": ["a.png"], "teacher_images": ["b.png"],
             "answer": "B", "extra_info": {}}]  # fmt: skip
    (sample,) = imported("vision_opd", write(folder / "o.jsonl", data), folder)
    assert sample.privileged.context == VISION_OPD_CONTEXT
    assert sample.privileged.images[0].getpixel((3, 3)) == (0, 0, 255)
    assert sample.plain.images[0].getpixel((3, 3)) == (255, 0, 0)


def test_a_folder_of_images(folder) -> None:
    (folder / "pics" / "cat").mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(folder / "pics" / "cat" / "1.png")
    written, _ = write_rows(
        IMPORTERS["folder"](folder / "pics", "what ?"), folder / "out", root=folder / "pics"
    )
    (row,) = read_rows(folder / "out")
    assert written == 1 and (row["uid"], row["answer"]) == ("cat-1", "cat")


def test_the_script_lists_what_it_left_out_and_overwrites_nothing(
    folder, monkeypatch, capsys
) -> None:
    turns = [{"from": "human", "value": "x ?"}]
    data = [
        {"id": 1, "image": "a.png", "conversations": turns},
        {"id": 2, "image": "../no.png", "conversations": turns},
    ]
    source = write(folder / "l.json", data)
    arguments = ["llava", str(source), "--out", str(folder / "rows")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    told = capsys.readouterr().out
    assert "1 rows in" in told and "1 skipped" in told
    (left_out,) = read_rows(folder / "rows" / "skipped.jsonl")
    assert left_out["uid"] == "2-0" and "must be relative" in left_out["reason"]
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "exists already" in capsys.readouterr().err


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


def test_coco_files_of_a_folder_are_taken_together_and_crowds_counted(folder) -> None:
    instances = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "cup"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 20], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1,
             "segmentation": {"size": [40, 60], "counts": [0, 2400]}},
        ],
    }  # fmt: skip
    captions = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "caption": "a red field"}],
    }
    (folder / "json").mkdir()
    write(folder / "json" / "instances.json", instances)
    write(folder / "json" / "captions.json", captions)
    (row,) = import_rows("coco", folder / "json", "?")
    assert row["annotations"] == {
        "boxes": [{"bbox": [1, 2, 30, 20], "label": "cup"}],
        "captions": ["a red field"],
    }
    assert (row["answer"], row["meta"]["crowds"]) == ("a red field", 1)


UNC_REFS = [
    {"ref_id": 5, "ann_id": 1, "image_id": 7, "split": "val",
     "sentences": [{"sent": "left cup"}, {"sent": "left cup"}, {"sent": "the red one"}]},
]  # fmt: skip
UNC_INSTANCES = {
    "images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}],
    "annotations": [
        {"id": 1, "bbox": [6, 4, 30, 20], "segmentation": [[6, 4, 36, 4, 36, 24, 6, 24]]}
    ],
}


def refcoco_sources(folder):
    """The same object in the three forms."""
    (folder / "unc").mkdir()
    write(folder / "unc" / "refs.json", UNC_REFS)
    write(folder / "unc" / "instances.json", UNC_INSTANCES)
    thing, about = UNC_INSTANCES["annotations"][0], UNC_INSTANCES["images"][0]
    row = {
        **UNC_REFS[0], "bbox": [6.0, 4.0, 36.0, 24.0], "raw_image_info": json.dumps(about),
        "raw_anns": json.dumps(thing), "image_path": "coco/train2014/a.png",
    }  # fmt: skip
    datasets.Dataset.from_list([row]).to_parquet(str(folder / "sentences.parquet"))
    lmms = {
        "question_id": "q1", "image": {"bytes": (folder / "a.png").read_bytes(), "path": "a.png"},
        "question": "Please describe", "answer": ["left cup", "the red one"],
        "bbox": [6.0, 4.0, 30.0, 20.0], "segmentation": [6.0, 4.0, 36.0, 4.0, 36.0, 24.0, 6.0, 24.0],
    }  # fmt: skip
    table = datasets.Dataset.from_list([lmms]).cast_column("image", datasets.Image())
    table.to_parquet(str(folder / "lmms.parquet"))
    return {"unc": folder / "unc", "sentences": folder / "sentences.parquet",
            "lmms": folder / "lmms.parquet"}  # fmt: skip


@pytest.mark.parametrize("form", ["unc", "sentences", "lmms"])
def test_refcoco_asks_where_each_expression_is(folder, form) -> None:
    source = refcoco_sources(folder)[form]
    import_folder("refcoco", source, folder / "out", images=folder, question="Find {expression}.")
    samples = [make_sample(row, ["boxes", "masks"]) for row in read_rows(folder / "out")]
    assert [s.question for s in samples] == ["Find left cup.", "Find the red one."]
    assert {(s.answer, s.answer_type) for s in samples} == {("[100, 100, 600, 600]", "box")}
    assert samples[1].privileged.context.startswith(
        'boxes:\n[{"bbox_2d": [100, 100, 600, 600], "label": "the red one"}]\n'
        'masks:\n[{"polygon_2d": [100, 100, 600, 100, 600, 600, 100, 600]'
    )


def test_refcoco_has_a_question_of_its_own(folder) -> None:
    row = next(import_rows("refcoco", refcoco_sources(folder)["unc"], "Describe the image."))
    assert row["question"].startswith("Locate left cup. Answer with its box as [x1, y1, x2, y2]")


def test_a_pickle_is_refused_with_the_way_round(folder) -> None:
    (folder / "refs(unc).p").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"is a pickle.*json\.dump"):
        next(import_rows("refcoco", folder / "refs(unc).p", ""))


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_webdataset_shards(folder) -> None:
    a, b = ((folder / name).read_bytes() for name in ("a.png", "b.png"))
    (folder / "shards").mkdir()
    asked = {"question": "which <image> <image> ?", "answer": "red",
             "annotations": {"boxes": [{"bbox": [1, 2, 3, 4], "label": "x", "image": 1}]}}  # fmt: skip
    tar_of(folder / "shards" / "0.tar", [("k1.0.png", a), ("k1.1.png", b), ("k1.json", asked)])
    tar_of(folder / "shards" / "1.tar",
           [("d/k2.png", b), ("d/k2.txt", b"all blue"), ("d/k3.png", a), ("d/k3.cls", b"red")])  # fmt: skip
    first, second, third = imported("webdataset", folder / "shards", folder, ["captions", "boxes"])
    assert (first.uid, first.answer, first.question) == ("k1", "red", "which <image> <image> ?")
    assert [image.getpixel((1, 1)) for image in first.plain.images] == [(255, 0, 0), (0, 0, 255)]
    assert "image 2: " in first.privileged.context
    assert (second.uid, second.answer, second.question) == ("d/k2", "all blue", "what is this ?")
    assert second.privileged.context == "captions:\nall blue"
    assert (third.answer, third.privileged.context) == ("red", "")


def test_what_load_image_shows_unchanged_is_kept_byte_for_byte(folder) -> None:
    plain = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    plain.save(folder / "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.save(folder / "turned.jpg", exif=exif)
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    plain.convert("RGBA").save(folder / "alpha.png")
    names = ["plain.jpg", "turned.jpg", "cmyk.jpg", "alpha.png"]
    write_rows([{"uid": "x", "images": names, "question": "?"}], folder / "out", root=folder)
    (row,) = read_rows(folder / "out")
    assert [Path(name).suffix for name in row["images"]] == [".jpg", ".png", ".png", ".png"]
    stored = folder / "out" / row["images"][0]
    assert stored.read_bytes() == (folder / "plain.jpg").read_bytes()
    for name, made in zip(names, make_sample(row, []).plain.images, strict=True):
        assert made.tobytes() == load_image(name, root=folder).tobytes()
