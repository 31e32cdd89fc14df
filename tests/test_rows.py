"""Rows from every source: the same content, uids, places for errors, and clear refusals."""

import contextlib
import gzip
import io
import json
import tarfile

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.data.rows import Rows, read_rows, sound_rows
from dopd_vlm.data.sources import tables
from dopd_vlm.data.views import make_sample, make_samples


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def plain_rows(folder):
    colours = {"a.png": "red", "b.png": "blue"}
    for name, colour in colours.items():
        Image.new("RGB", (7, 5), colour).save(folder / name)
    return [
        {"uid": "one", "images": ["a.png"], "question": "which ?", "answer": "red"},
        {"uid": "two", "images": ["a.png", "b.png"], "question": "and ?", "answer": "blue"},
        {"uid": "three", "images": [], "question": "no image ?", "answer": "none"},
    ]


def write_jsonl(path, rows) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


def with_bytes(folder, rows):
    def embed(name):
        return {"bytes": (folder / name).read_bytes(), "path": name}

    return [{**row, "images": [embed(name) for name in row["images"]]} for row in rows]


def sources(folder, rows):
    """The same rows in every form that read_rows reads."""
    write_jsonl(folder / "metadata.jsonl", rows)
    write_jsonl(folder / "rows.jsonl", rows)
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(folder / "paths.parquet"))
    embedded = datasets.Dataset.from_list(with_bytes(folder, rows))
    embedded.to_parquet(str(folder / "bytes.parquet"))
    images = embedded.cast_column("images", datasets.List(datasets.Image()))
    images.save_to_disk(str(folder / "saved"))
    return {
        "folder": (folder, {}),
        "jsonl": (folder / "rows.jsonl", {}),
        "parquet of paths": (folder / "paths.parquet", {}),
        "parquet of bytes": (folder / "bytes.parquet", {}),
        "save_to_disk": (folder / "saved", {}),
        "data set object": (images, {}),
        "memory": (rows, {"root": folder}),
    }


def test_every_source_gives_the_same_samples(tmp_path) -> None:
    given = plain_rows(tmp_path)
    for kind, (source, options) in sources(tmp_path, given).items():
        rows = read_rows(source, **options)
        samples = [make_sample(row, []) for row in rows]
        assert [s.uid for s in samples] == ["one", "two", "three"], kind
        assert [s.answer for s in samples] == ["red", "blue", "none"], kind
        colours = [[image.getpixel((3, 2)) for image in s.plain.images] for s in samples]
        assert colours == [[(255, 0, 0)], [(255, 0, 0), (0, 0, 255)], []], kind
        assert rows[-1]["uid"] == "three"
        assert [row["uid"] for row in rows[1:]] == ["two", "three"], kind


def test_a_row_knows_its_file_and_line(tmp_path) -> None:
    (tmp_path / "r.jsonl").write_text('{"uid": "x", "question": "a"}\n\n{"uid": "y"}\n')
    rows = read_rows(tmp_path / "r.jsonl")
    assert rows[1]["origin"]["line"] == 3
    with pytest.raises(ValueError, match=r"row 'y' \(.*r\.jsonl line 3\): the question is empty"):
        make_sample(rows[1], [])


def test_a_row_cannot_name_its_own_folder(tmp_path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "out.png")
    row = {"uid": "x", "question": "a", "images": ["out.png"], "origin": {"root": str(tmp_path)}}
    write_jsonl(inside / "r.jsonl", [row])
    with pytest.raises(ValueError, match="does not exist"):
        make_sample(read_rows(inside / "r.jsonl")[0], [])


def test_missing_uids_come_from_file_and_position(tmp_path) -> None:
    write_jsonl(tmp_path / "my rows.jsonl", [{"question": "a"}, {"question": "b", "uid": 7}])
    assert [row["uid"] for row in read_rows(tmp_path / "my rows.jsonl")] == ["my_rows-000000", "7"]


def test_a_uid_held_twice_is_a_bad_row_with_both_places(tmp_path) -> None:
    rows = [{"uid": uid, "question": "?"} for uid in "abaa"]
    write_jsonl(tmp_path / "r.jsonl", rows)
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "r.parquet"))
    for source in (tmp_path / "r.jsonl", tmp_path / "r.parquet", rows):
        found = read_rows(source)
        samples, skipped = make_samples(found, [])
        assert [sample.uid for sample in samples] == ["a", "b"]
        assert [bad.uid for bad in skipped] == ["a", "a"]
        name = "rows in memory" if source is rows else str(source)
        assert skipped[1].reason.startswith(f"row 'a' ({name} line 4): line 1 has the uid 'a' too")
        assert [row["origin"].get("problem") is None for row in found[1:3]] == [True, False]


def test_splits_of_meta_of_data_sets_and_of_folders(tmp_path) -> None:
    rows = [{"uid": str(i), "meta": {"split": s}} for i, s in enumerate(["train", "test", "test"])]
    write_jsonl(tmp_path / "r.jsonl", rows)
    assert [row["uid"] for row in read_rows(tmp_path / "r.jsonl", split="test")] == ["1", "2"]
    with pytest.raises(ValueError, match=r"meta\.split 'dev'; there are: test, train"):
        read_rows(tmp_path / "r.jsonl", split="dev")
    table = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": table, "dev": table.select([2])}).save_to_disk(
        str(tmp_path / "saved")
    )
    assert [row["uid"] for row in read_rows(tmp_path / "saved", split="dev")] == ["2"]
    with pytest.raises(ValueError, match="has no split None; it has: train, dev"):
        read_rows(tmp_path / "saved")
    (tmp_path / "test").mkdir()
    write_jsonl(tmp_path / "test" / "metadata.jsonl", rows[:1])
    assert len(read_rows(tmp_path, split="test")) == 1


def test_splits_and_slices_of_a_table_stay_tables(tmp_path) -> None:
    rows = [{"uid": str(i), "meta": {"split": s}} for i, s in enumerate(["a", "b", "b", "b"])]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "r.parquet"))
    found = read_rows(tmp_path / "r.parquet", split="b")
    assert isinstance(found[1:], Rows)
    assert [row["uid"] for row in found[1:]] == ["2", "3"]
    assert (found[-1]["uid"], found[1:][0]["origin"]["line"]) == ("3", 3)
    with pytest.raises(IndexError):
        found[3]


def test_image_folder_columns_are_understood(tmp_path) -> None:
    plain_rows(tmp_path)
    rows = [{"file_name": "a.png", "question": "x"}, {"images_file_names": ["b.png"]}]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    assert [row["images"] for row in read_rows(tmp_path)] == [["a.png"], ["b.png"]]


@pytest.mark.parametrize("odd", [3, "x", [1], None])
def test_odd_meta_and_origin_of_a_row_do_no_harm(tmp_path, odd) -> None:
    rows = [{"uid": "a", "meta": odd, "origin": odd}, {"uid": "b", "meta": {"split": "test"}}]
    write_jsonl(tmp_path / "r.jsonl", rows)
    for source in (rows, tmp_path / "r.jsonl"):
        assert [row["uid"] for row in read_rows(source, split="test")] == ["b"]
        assert read_rows(source)[0]["origin"]["line"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"uid": \n', "the line is not JSON"),
        (b'{"uid": "b", "uid": "c"}\n', "the line is not JSON: the key 'uid' stands"),
        (b"[1]\n", "the line must be an object, got list"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
        ('{"uid": "é"}\n'.encode("latin-1"), "the line is not UTF-8"),
    ],
)
def test_a_broken_line_is_a_bad_row_of_every_split_and_the_others_are_read(
    tmp_path, content, message
) -> None:
    path = tmp_path / "r.jsonl"
    good = [
        b'{"uid": "%s", "question": "?", "meta": {"split": "test"}}\n' % uid for uid in (b"a", b"c")
    ]
    path.write_bytes(good[0] + content + good[1])
    for split in (None, "test"):
        samples, skipped = make_samples(read_rows(path, split=split), [])
        assert [sample.uid for sample in samples] == ["a", "c"]
        (bad,) = skipped
        assert bad.uid == "r-000001" and bad.file == str(path)
        assert bad.reason.startswith(f"row 'r-000001' ({path} line 2): {message}") or (
            message in bad.reason and "deep" in message
        )
    with pytest.raises(ValueError, match=r"r\.jsonl line 2: "):
        list(sound_rows(path))


def test_sources_that_are_none_say_what_is_needed(tmp_path) -> None:
    (tmp_path / "r.csv").write_text("a")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"need \.jsonl, \.parquet, \.tar or a folder"):
        read_rows(tmp_path / "r.csv")
    with pytest.raises(ValueError, match="no readable Parquet"):
        read_rows(tmp_path / "broken.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds neither metadata\.jsonl nor"):
        read_rows(tmp_path / "empty")
    with pytest.raises(ValueError, match="no file or folder"):
        read_rows(tmp_path / "absent.jsonl")


def test_shards_of_a_folder_are_one_set_and_their_names_tell_the_split(tmp_path) -> None:
    for name, uids in {"train-0": "ab", "train-1": "c", "test-0": "d"}.items():
        table = datasets.Dataset.from_list([{"uid": uid, "question": "?"} for uid in uids])
        table.to_parquet(str(tmp_path / f"{name}.parquet"))
    assert [row["uid"] for row in read_rows(tmp_path)] == ["d", "a", "b", "c"]
    assert [row["uid"] for row in read_rows(tmp_path, split="train")] == ["a", "b", "c"]


def test_parquet_of_large_row_groups_gives_the_same_rows(tmp_path, monkeypatch) -> None:
    path = sources(tmp_path, plain_rows(tmp_path))["parquet of bytes"][0]
    small = list(read_rows(path))
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 0)
    assert isinstance(tables.parquet_table([path]), tables.HubTable)
    assert list(read_rows(path)) == small


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for entry, data in members:
            entry = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def link_named(name):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return entry


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../x.png", b"")], "named outside the archive"),
        ([("/x.png", b"")], "named outside the archive"),
        ([(link_named("x.png"), b"")], "is no plain file"),
    ],
)
def test_shards_with_bad_members_are_refused(tmp_path, members, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_rows(tar_of(tmp_path / "s.tar", members))


@pytest.mark.parametrize(
    ("members", "line", "message"),
    [
        ([("x.json", b"{")], 1, "is not JSON"),
        ([("x.json", b"[1]")], 1, "must be an object, got list"),
        ([("x.json", b'{"a": "\xe9"}')], 1, "is not UTF-8"),
        ([("x.png", b""), ("y.png", b""), ("x.png", b"")], 3, "line 1 has the uid 'x' too"),
    ],
)
def test_a_bad_member_of_a_shard_is_a_bad_row(tmp_path, members, line, message) -> None:
    rows = read_rows(tar_of(tmp_path / "s.tar", members))
    assert message in rows[line - 1]["origin"]["problem"]
    with pytest.raises(ValueError, match=rf"s\.tar line {line}\): .*{message}"):
        make_sample(rows[line - 1], [])


def test_compressed_and_cut_shards_are_refused(tmp_path) -> None:
    path = tar_of(tmp_path / "s.tar", [("x.json", b'{"question": "' + b"a" * 4000 + b'"}')])
    (tmp_path / "z.tar").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"no uncompressed tar.*decompress a \.tar\.gz first"):
        read_rows(tmp_path / "z.tar")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut off|no uncompressed tar"):
        read_rows(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_as_jsonl_are_rows_or_a_value_error(tmp_path_factory, data) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    with contextlib.suppress(ValueError):
        assert all(isinstance(row, dict) for row in read_rows(path))
