"""Loading an image: upright, on white, bounded, inside its folder, and clear when it cannot be."""

import contextlib
import io
import os
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.data.images import load_image


def saved(folder, name, image, **options):
    image.save(folder / name, **options)
    return name


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    chunk = struct.pack(">I", len(header)) + body + struct.pack(">I", zlib.crc32(body))
    data = zlib.compress(b"\0" * 64)
    idat = struct.pack(">I", len(data)) + b"IDAT" + data
    idat += struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return b"\x89PNG\r\n\x1a\n" + chunk + idat


def test_exif_rotation_is_applied_once_and_its_tag_dropped(tmp_path) -> None:
    image = Image.new("RGB", (6, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned 90 degrees clockwise
    name = saved(tmp_path, "turned.png", image, exif=exif)
    loaded = load_image(name, root=tmp_path)
    assert loaded.size == (4, 6)
    assert loaded.getpixel((3, 0)) == (255, 255, 255)
    assert loaded.getexif().get(0x0112) is None
    assert load_image(loaded).tobytes() == loaded.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode) -> None:
    rgba = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    buffer = io.BytesIO()
    rgba.convert(mode).save(buffer, "PNG", **({"transparency": 0} if mode == "P" else {}))
    loaded = load_image({"bytes": buffer.getvalue(), "path": None})
    assert loaded.mode == "RGB"
    assert loaded.getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_black_is_grey() -> None:
    value = load_image(Image.new("RGBA", (2, 3), (0, 0, 0, 128))).getpixel((0, 0))
    assert value == (127, 127, 127)


def test_16_bit_greys_are_scaled_not_clipped(tmp_path) -> None:
    image = Image.new("I;16", (5, 3), 128 * 256)
    name = saved(tmp_path, "deep.png", image)
    assert load_image(name, root=tmp_path).getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_becomes_rgb(tmp_path) -> None:
    name = saved(tmp_path, "print.jpg", Image.new("CMYK", (8, 9), (0, 0, 0, 255)))
    assert load_image(name, root=tmp_path).getpixel((4, 4)) == (0, 0, 0)


def test_the_limit_is_checked_before_decoding() -> None:
    with pytest.raises(ValueError, match=r"bomb\.png has 9000 x 9000 pixels, over the limit"):
        load_image({"bytes": png_claiming(9_000, 9_000), "path": "bomb.png"})
    with pytest.raises(ValueError, match=r"bomb\.png is over the limit of 64000000 pixels"):
        load_image({"bytes": png_claiming(90_000, 90_000), "path": "bomb.png"})
    with pytest.raises(ValueError, match="4 x 3 pixels, over the limit of 11"):
        load_image(Image.new("RGB", (4, 3)), max_pixels=11)


def test_too_thin_an_image_is_refused() -> None:
    assert load_image(Image.new("RGB", (60, 3))).size == (60, 3)
    with pytest.raises(ValueError, match=r"61 x 3 pixels; sides of more than 20:1"):
        load_image(Image.new("RGB", (61, 3)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a known format"),
        (b"%PDF-1.7", "no image of a known format"),
        (b"", "no image of a known format"),
        (png_claiming(40, 30), "truncated or damaged"),
    ],
)
def test_what_is_no_whole_image_is_refused(tmp_path, content, message) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.png.*{message}"):
        load_image("x.png", root=tmp_path)


def test_an_animation_is_refused(tmp_path) -> None:
    frames = [Image.new("RGB", (4, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="animated"):
        load_image("a.gif", root=tmp_path)


def test_paths_stay_in_the_data_folder(tmp_path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    saved(tmp_path, "secret.png", Image.new("RGB", (3, 4)))
    os.symlink(tmp_path / "secret.png", inside / "link.png")
    os.symlink(tmp_path, inside / "folder")
    saved(inside, "ok.png", Image.new("RGB", (3, 4)))
    assert load_image("ok.png", root=inside).size == (3, 4)
    for path in ("../secret.png", str(tmp_path / "secret.png"), "C:\\secret.png", "..\\secret.png"):
        with pytest.raises(ValueError, match="must be relative"):
            load_image(path, root=inside)
    for path in ("link.png", "folder/secret.png"):
        with pytest.raises(ValueError, match="link that leaves"):
            load_image(path, root=inside)


@pytest.mark.parametrize("source", [None, 3, {}, {"bytes": None, "path": None}, "", ["a.png"]])
def test_other_things_than_images_are_refused(source) -> None:
    with pytest.raises(ValueError, match="an image must be"):
        load_image(source)


def test_a_missing_file_names_where_it_was_looked_for(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no\.png does not exist \(looked for .*no\.png"):
        load_image("no.png", root=tmp_path)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).save(buffer, "PNG")
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(_png()) - 1), st.integers(0, 255), st.integers(0, len(_png())))
def test_a_damaged_image_loads_or_raises_value_error(position, value, length) -> None:
    data = bytearray(_png())
    data[position] = value
    with contextlib.suppress(ValueError):
        assert load_image({"bytes": bytes(data[:length]), "path": None}).mode == "RGB"
