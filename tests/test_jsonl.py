"""Lines and files that a kill leaves whole."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_vlm.jsonl import append_lines, read_lines, replacing, to_line, write_lines, write_whole

TEXTS = st.text(st.characters(), max_size=20)  # lone surrogates and U+2028 too


@given(st.lists(st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=3), max_size=4))
def test_appended_records_come_back_in_order_and_from_their_places(
    tmp_path_factory, batches
) -> None:
    path = tmp_path_factory.mktemp("lines") / "new" / "a.jsonl"
    places = [place for batch in batches for place in append_lines(path, batch)]
    records = [record for batch in batches for record in batch]
    assert read_lines(path) == records
    content = path.read_bytes() if batches else b""
    assert [json.loads(content[at : at + size]) for at, size in places] == records


@pytest.mark.parametrize("size", [1, 70_000, 140_000])
def test_every_cut_loses_the_broken_line_only(tmp_path, size) -> None:
    path = tmp_path / "a.jsonl"
    append_lines(path, [{"n": 0}, {"n": 1, "text": "ü" * size}])
    whole = path.read_bytes()
    second = len(to_line({"n": 0}))
    for end in {second, second + 1, second + 21, len(whole) - 6, len(whole) - 1}:
        path.write_bytes(whole[:end])
        assert [record["n"] for record in read_lines(path)] == [0]
        append_lines(path, [{"n": 2}])
        assert [record["n"] for record in read_lines(path)] == [0, 2]
    path.write_bytes(b'{"n"')
    assert read_lines(path) == []
    append_lines(path, [])
    assert path.read_bytes() == b""


def test_a_file_that_is_absent_has_no_lines(tmp_path) -> None:
    assert read_lines(tmp_path / "absent.jsonl") == []


def _write_until_killed(folder: Path) -> None:
    append_lines(folder / "log.jsonl", [{"n": 1}])
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"n": ')
    with replacing(folder / "whole.txt") as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_the_old_file_and_the_whole_lines(tmp_path) -> None:
    write_whole(tmp_path / "whole.txt", "old")
    child = multiprocessing.get_context("fork").Process(
        target=_write_until_killed, args=(tmp_path,)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "whole.txt").read_text() == "old"
    assert read_lines(tmp_path / "log.jsonl") == [{"n": 1}]
    append_lines(tmp_path / "log.jsonl", [{"n": 2}])
    assert read_lines(tmp_path / "log.jsonl") == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_failed_block_changes_nothing_and_leaves_nothing(tmp_path, is_folder) -> None:
    def write(path: Path, text: str) -> None:
        if is_folder:
            path.mkdir()
        (path / "inner" if is_folder else path).write_text(text)

    place = tmp_path / "place"
    for text in ("first", "second"):  # the second replaces a file or a folder that is not empty
        with replacing(place) as partial:
            write(partial, text)
    with pytest.raises(KeyboardInterrupt), replacing(place) as partial:
        write(partial, "third")
        raise KeyboardInterrupt
    assert (place / "inner" if is_folder else place).read_text() == "second"
    assert os.listdir(tmp_path) == ["place"]


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path) -> None:
    for name in ("one", "two"):
        write_lines(tmp_path / name / "a.jsonl", [{"name": name}])
        with replacing(tmp_path / "last") as link:
            link.symlink_to(name, target_is_directory=True)
    assert read_lines(tmp_path / "last" / "a.jsonl") == [{"name": "two"}]
    assert read_lines(tmp_path / "one" / "a.jsonl") == [{"name": "one"}]
