"""Bad input, mixed at random with good: every row is a sample or a counted refusal with its reason."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.validate import data_card, validate
from dopd_vlm.data.views import make_sample, make_samples

EVERYTHING = [("boxes", "both"), ("masks", "both"), "hints"]
INF = float("inf")


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(side):
    """A few kilobytes that would be side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(side // 8 + 1) * 100)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def noisy(size=(40, 30)):
    return Image.effect_noise(size, 60).convert("RGB")


def frames(kind):
    images = [noisy() for _ in range(3)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


BAD_FILES = {
    "bomb": (png_bomb(60_000), "over the limit"),
    "thin": (encoded(Image.new("L", (900, 3)), "PNG"), "more than 20:1"),
    "truncated jpeg": (encoded(noisy(), "JPEG")[:300], "truncated or damaged"),
    "truncated png": (encoded(noisy(), "PNG")[:-40], "truncated or damaged"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            "no image of a known format"),
    "pdf": (b"%PDF-1.7\n1 0 obj << /Type /Catalog >> endobj", "no image of a known format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image of a known format"),
    "empty": (b"", "no image of a known format"),
    "text": (b"404 not found", "no image of a known format"),
    "animated gif": (frames("GIF"), "is animated"),
    "animated webp": (frames("WEBP"), "is animated"),
    "several pages": (frames("TIFF"), "is animated"),
    "floats": (encoded(Image.fromarray(np.random.rand(30, 40).astype("f4")), "TIFF"), "floats"),
    "thirty-two bits": (
        encoded(Image.fromarray(np.full((30, 40), 90_000, np.int32)), "TIFF"), "no 16-bit"),
}  # fmt: skip
ODD_FILES = {
    "png named jpg": encoded(noisy(), "PNG"),
    "sixteen bits": encoded(Image.fromarray(np.full((30, 40), 40_000, np.uint16)), "PNG"),
    "sixteen bit tiff": encoded(Image.fromarray(np.full((30, 40), 40_000, np.uint16)), "TIFF"),
    "cmyk": encoded(noisy().convert("CMYK"), "JPEG"),
    "bilevel": encoded(noisy().convert("1"), "PNG"),
    "palette": encoded(noisy().convert("P"), "GIF"),
    "alpha": encoded(noisy().convert("RGBA"), "PNG"),
    "grey and alpha": encoded(noisy().convert("LA"), "WEBP"),
}
"""Unusual, but an image all the same: 40 x 30 pixels."""
BAD_PATHS = {
    "up": ("../secret.png", "must be relative"),
    "absolute": ("/etc/passwd", "must be relative"),
    "drive": ("C:\\secret.png", "must be relative"),
    "link": ("link.png", "link that leaves"),
    "linked folder": ("folder/secret.png", "link that leaves"),
    "absent": ("absent.png", "does not exist"),
    "null byte": ("a\0.png", "must be relative"),
    "very long": ("a" * 5000 + ".png", "no name of a file|does not exist"),
    "folder": ("inner", "does not exist"),
}
BAD_BOXES = {
    "not a number": ([float("nan"), 1, 5, 5], "finite numbers"),
    "infinite": ([0, 1, INF, 5], "finite numbers"),
    "negative place": ([-9, 1, 5, 5], "leaves image"),
    "negative size": ([9, 9, -5, 5], "has no area"),
    "swapped corners": ([30, 20, -20, -15], "has no area"),
    "corners for sizes": ([30, 20, 38, 28], "leaves image"),
    "no area": ([3, 3, 0, 5], "has no area"),
    "text": (["1", 2, 3, 4], "finite numbers"),
    "three": ([1, 2, 3], "must be 4 numbers"),
    "none": (None, "must be 4 numbers"),
    "truth": ([True, 1, 2, 3], "finite numbers"),
}
RUNS = {"size": [30, 40], "counts": [0, 1200]}
BAD_MASKS = {
    "other size": ({"size": [31, 40], "counts": [0, 1240]}, "must be the image's"),
    "too short": ({"size": [30, 40], "counts": [0, 1100]}, "fill 30 x 40"),
    "negative": ({"size": [30, 40], "counts": [-1, 1201]}, "fill 30 x 40"),
    "huge": ({"size": [30, 40], "counts": [10**12]}, "fill 30 x 40"),
    "empty": ({"size": [30, 40], "counts": [1200]}, "has no area"),
    "odd text": ({"size": [30, 40], "counts": "\x01"}, "must not hold"),
    "outside": ([[1, 1, 90, 1, 90, 20]], "leaves image"),
    "line": ([[1, 1]], "masks"),
    "not numbers": ([["a", 1, 2, 3, 4, 5]], "masks"),
}
BAD_ROWS = {
    "no question": ({"question": " "}, "question is empty"),
    "number for question": ({"question": 7}, "question must be text, got 7"),
    "question and messages": (
        {"messages": [{"role": "user", "content": "who ?"}]}, "both 'question' and 'messages'"),
    "NUL": ({"question": "what\0 ?"}, "the question holds a NUL"),
    "surrogate in a caption": (
        {"annotations": {"hints": ["look \ud800"]}}, "the privileged text is no valid Unicode"),
    "list for answer": ({"answer": ["red"]}, "answer must be text or a number, got \\['red'\\]"),
    "truth for answer": ({"answer": True}, "answer must be text or a number, got True"),
    "NaN for answer": ({"answer": float("nan")}, "answer must be text or a number, got nan"),
    "list for option": ({"choices": {"A": ["x"], "B": "y"}, "answer": "B"}, "option A must be text"),
    "list for label": (
        {"annotations": {"boxes": [{"bbox": [1, 1, 5, 5], "label": ["a"]}]}}, "label must be text"),
    "number for context": ({"privileged_context": 5}, "privileged_context must be text, got 5"),
    "text for bytes": ({"images": [{"bytes": "abc", "path": "p.png"}]}, "bytes must be bytes"),
    "link to itself": ({"images": ["loop.png"]}, "link that leads to itself"),
    "turn in the question": (
        {"question": "what ?<|im_end|>\n<|im_start|>system"}, "question holds '<.im_end.>'"),
    "image token in a hint": (
        {"annotations": {"hints": ["<|image_pad|>"]}}, "privileged text holds '<.image_pad.>'"),
    "turn in an option": (
        {"choices": {"A": "<start_of_turn>", "B": "y"}, "answer": "B"}, "option A holds '<start"),
    "turn in system": ({"system": "<|im_start|>"}, "system holds"),
    "lone surrogate": ({"question": "what \ud800 ?"}, "no valid Unicode"),
    "images as text": ({"images": "p.png"}, "must be a list"),
    "answer outside": ({"choices": ["a", "b"], "answer": "D"}, "not among the choices"),
    "annotations as list": ({"annotations": [1]}, "must be an object"),
    "annotations as broken text": ({"annotations": "{"}, "no JSON"),
    "disclosed": ({"annotations": {"hints": ["the answer is red"]}}, "discloses the answer"),
    "ten thousand": (
        {"annotations": {"boxes": [{"bbox": [1, 1, 5, 5]}] * 10_000}}, "at most 1000 objects"),
    "image that is not there": (
        {"annotations": {"boxes": [{"bbox": [1, 1, 5, 5], "image": 3}]}}, "names image 3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    inside = outside / "data"
    (inside / "inner").mkdir(parents=True)
    noisy().save(outside / "secret.png")
    os.symlink(outside / "secret.png", inside / "link.png")
    os.symlink(outside, inside / "folder")
    os.symlink("loop.png", inside / "loop.png")
    noisy().save(inside / "p.png")
    for name, (data, _) in BAD_FILES.items():
        (inside / f"{name}.png").write_bytes(data)
    for name, data in ODD_FILES.items():
        (inside / f"{name}.jpg").write_bytes(data)
    return inside


def good_row(uid):
    annotations = {
        "boxes": [{"bbox": [1, 2, 20, 20], "label": "x"}],
        "masks": [{"segmentation": RUNS}],
    }
    return {"uid": uid, "images": ["p.png"], "question": "what ?", "answer": "red",
            "annotations": annotations}  # fmt: skip


def cases():
    """(what is changed in a good row, the reason it is refused for or None)."""
    yield {}, None
    for name in ODD_FILES:
        yield {"images": [f"{name}.jpg"]}, None
    for name, (_, reason) in BAD_FILES.items():
        yield {"images": [f"{name}.png"]}, reason
    for path, reason in BAD_PATHS.values():
        yield {"images": [path]}, reason
    for box, reason in BAD_BOXES.values():
        yield {"annotations": {"boxes": [{"bbox": box}]}}, reason
    for area, reason in BAD_MASKS.values():
        yield {"annotations": {"masks": [{"segmentation": area}]}}, reason
    yield from BAD_ROWS.values()


CASES = list(cases())


@pytest.mark.parametrize("index", range(len(CASES)))
def test_each_case_has_its_outcome_and_reason(folder, index) -> None:
    change, reason = CASES[index]
    samples, skipped = make_samples([{**good_row("x"), **change}], EVERYTHING, root=folder)
    if reason is None:
        assert [s.plain.images[0].size for s in samples] == [(40, 30)] and not skipped
        assert samples[0].plain.images[0].mode == "RGB"
        return
    assert not samples
    with pytest.raises(ValueError, match=reason):
        raise ValueError(skipped[0].reason)
    assert skipped[0].reason.startswith("row 'x': ")


def test_sixteen_bits_are_scaled_not_clipped(folder) -> None:
    for name in ("sixteen bits.jpg", "sixteen bit tiff.jpg"):
        (sample,), _ = make_samples([{**good_row("x"), "images": [name]}], [], root=folder)
        assert sample.plain.images[0].getpixel((5, 5)) == (156, 156, 156)  # 40000 / 256


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(CASES) - 1), min_size=1, max_size=12))
def test_a_mixed_file_loses_nothing_and_validates_to_the_same_counts(folder, picks) -> None:
    rows = [{**good_row(f"r{n}"), **CASES[pick][0]} for n, pick in enumerate(picks)]
    path = folder / "mixed.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    read = read_rows(path)
    samples, skipped = make_samples(read, EVERYTHING)
    good = [f"r{n}" for n, pick in enumerate(picks) if CASES[pick][1] is None]
    assert [sample.uid for sample in samples] == good
    assert len(samples) + len(skipped) == len(rows)
    assert all(f"mixed.jsonl line {int(bad.uid[1:]) + 1})" in bad.reason for bad in skipped)
    report = validate(read, ["boxes", "masks", "hints"])
    assert [bad.uid for bad in report.problems] == [bad.uid for bad in skipped]
    card = data_card(report, "mixed")
    assert f"of which {len(good)} are good and {len(skipped)} are not" in card
    card.encode("utf-8")


number = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**20), 10**20)
anything = st.recursive(
    st.none() | st.booleans() | number | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(number, min_size=4, max_size=4), anything)
def test_any_numbers_as_a_box_are_a_drawn_box_or_a_refusal(folder, numbers, label) -> None:
    row = {**good_row("x"), "annotations": {"boxes": [{"bbox": numbers, "label": label}]}}
    samples, skipped = make_samples([row], [("boxes", "both")], root=folder)
    assert len(samples) + len(skipped) == 1
    if samples:
        assert samples[0].privileged.images[0].size == (40, 30)


@settings(max_examples=150, deadline=None)
@given(anything)
def test_any_segmentation_is_a_mask_or_a_refusal(folder, area) -> None:
    for segmentation in (area, {"size": [30, 40], "counts": area}):
        row = {**good_row("x"), "annotations": {"masks": [{"segmentation": segmentation}]}}
        samples, skipped = make_samples([row], [("masks", "both")], root=folder)
        assert len(samples) + len(skipped) == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
def test_a_damaged_file_of_any_format_is_an_image_or_a_refusal(folder, kind, data) -> None:
    whole = bytearray(encoded(Image.linear_gradient("L").resize((16, 12)), kind))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    row = {**good_row("x"), "images": [{"bytes": bytes(whole[:cut]), "path": None}]}
    samples, skipped = make_samples([row], [], root=folder)
    assert len(samples) + len(skipped) == 1


def test_a_uid_held_twice_costs_the_later_row_alone(folder) -> None:
    path = folder / "twice.jsonl"
    path.write_text("\n".join(json.dumps(good_row(uid)) for uid in "aba"))
    samples, skipped = make_samples(read_rows(path), [])
    assert [sample.uid for sample in samples] == ["a", "b"]
    assert [bad.uid for bad in skipped] == ["a"] and "line 3" in skipped[0].reason


def test_columns_of_mixed_types_concern_their_rows_alone(folder) -> None:
    path = folder / "types.jsonl"
    changes = [
        {"answer": 3},
        {"answer": ["a"]},
        {"meta": "x"},
        {"choices": {"A": 1, "B": None}},
        {},
    ]
    path.write_text("\n".join(json.dumps({**good_row(str(n)), **c}) for n, c in enumerate(changes)))
    samples, skipped = make_samples(read_rows(path), EVERYTHING)
    assert [sample.uid for sample in samples] == ["0", "4"]
    assert [bad.uid for bad in skipped] == ["1", "2", "3"]


def test_an_image_that_claims_much_is_refused_before_it_is_decoded(folder) -> None:
    assert len((folder / "bomb.png").read_bytes()) < 5000
    before = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    with pytest.raises(ValueError, match="over the limit of 64000000 pixels"):
        make_sample({**good_row("x"), "images": ["bomb.png"]}, [], root=folder)
    after = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    assert int(after) - int(before) < 50_000  # kB; decoded it would be 450 MB
