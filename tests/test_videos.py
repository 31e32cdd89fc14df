"""Rows with videos: frames with their times, in the video's own pixels."""

import json

import numpy as np
import pytest

from dopd_vlm.data.formats.folder import write_rows
from dopd_vlm.data.questions import read_question
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.videos import decoder, load_clips
from dopd_vlm.data.views import make_sample

av = pytest.importorskip("av")
pytest.importorskip("decord")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video of 3 s at 10 frames a second in which a red bar grows from the left."""
    path = tmp_path_factory.mktemp("videos")
    with av.open(str(path / "bar.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(30):
            pixels = np.zeros((96, 128, 3), np.uint8)
            pixels[:, : (index + 1) * 128 // 30] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    (path / "broken.mp4").write_bytes((path / "bar.mp4").read_bytes()[:600])
    return path


def red_share(image):
    return (np.asarray(image)[48, :, 0] > 128).mean()


def test_frames_are_spread_over_the_video_and_keep_its_size(folder) -> None:
    (clip,) = load_clips(["bar.mp4"], root=folder)
    assert len(clip.frames) == len(clip.seconds) == 6  # 2 a second
    assert {frame.size for frame in clip.frames} == {(128, 96)}
    assert clip.seconds[0] == 0.0 and clip.seconds[-1] == pytest.approx(2.9)
    for frame, time in zip(clip.frames, clip.seconds, strict=True):
        assert red_share(frame) == pytest.approx((10 * time + 1) / 30, abs=0.05)


def test_a_row_with_a_video_shows_times_and_frames_to_both_models(folder) -> None:
    row = {
        "uid": "v", "videos": [{"path": "bar.mp4", "max_frames": 4}], "answer": "red",
        "question": "What grows in <video> ?",
        "annotations": {"boxes": [{"bbox": [0, 0, 64, 96], "label": "bar", "image": 3}]},
    }  # fmt: skip
    (folder / "rows.jsonl").write_text(json.dumps(row))
    sample = make_sample(read_rows(folder / "rows.jsonl")[0], ["boxes"])
    assert sample.question == (
        "What grows in <0.0 seconds><image><1.0 seconds><image><1.9 seconds><image>"
        "<2.9 seconds><image> ?"
    )
    assert len(sample.plain.images) == len(sample.privileged.images) == 4
    assert sample.privileged.context.startswith('boxes:\nimage 4: [{"bbox_2d": [0, 0, 500, 1000]')


def test_part_of_a_video(folder) -> None:
    source = {"path": "bar.mp4", "video_start": 1.0, "video_end": 2.0, "max_frames": 4}
    (clip,) = load_clips([source], root=folder)
    assert clip.seconds[0] >= 1.0 and clip.seconds[-1] <= 2.0


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (["broken.mp4"], r"video broken\.mp4 cannot be read by decord"),
        (["none.mp4"], r"video none\.mp4 does not exist"),
        (["../bar.mp4"], "must be relative"),
        ("bar.mp4", "videos must be a list"),
        ([3], "a video must be a path"),
        ([{"path": "bar.mp4", "speed": 2}], "got speed"),
        ([{"path": "bar.mp4", "max_frames": 5000}], r"max_frames must be in 2\.\.128"),
        ([{"path": "bar.mp4", "fps": "fast"}], r"fps must be a number"),
    ],
)
def test_bad_videos_are_refused(folder, videos, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_clips(videos, root=folder)


def test_images_and_videos_in_one_question() -> None:
    clip = "<0.0 seconds><image>"

    def text(question):
        return read_question({"question": question}, 1, [clip]).text

    assert text("so ?") == f"<image>{clip}so ?"
    assert text("<image> and <video> ?") == f"<image> and {clip} ?"
    with pytest.raises(ValueError, match="before videos"):
        text("<video> and <image> ?")
    with pytest.raises(ValueError, match="2 <video> but the row 1 videos"):
        text("<video><video> ?")
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}
    assert read_question({"messages": [turn]}, 0, [clip]).text == f"{clip}what ?"


def test_a_video_moves_with_its_row(folder, tmp_path) -> None:
    row = {"uid": "v", "question": "?", "videos": ["bar.mp4", {"path": "bar.mp4", "fps": 1.0}]}
    write_rows([row], tmp_path / "out", root=folder)
    (made,) = read_rows(tmp_path / "out")
    assert made["videos"][1]["fps"] == 1.0
    assert len(make_sample(made, []).plain.images) == 6 + 4


def test_the_decoder_is_one_that_loads() -> None:
    assert decoder()[0] == "decord"
