"""Marks on images: legible at every size, on any ground and to colour-blind eyes."""

import pytest
from PIL import Image, ImageChops, ImageColor

from dopd_vlm.data.annotations import drawing
from dopd_vlm.data.annotations.registry import TYPES, DrawnType


@pytest.mark.parametrize("side", [256, 1024, 4096])
def test_drawn_boxes_are_legible_at_every_size(side) -> None:
    kind = TYPES["boxes"]
    assert isinstance(kind, DrawnType)
    box = [side // 4, side // 4, side // 2, side // 2]
    value = kind.parse([{"bbox": box, "label": "cup"}], [(side, side)])
    drawn = kind.draw([Image.new("RGB", (side, side), "white")], value)[0]
    row = [drawn.getpixel((x, side // 2)) != (255, 255, 255) for x in range(side)]
    assert sum(row[: side // 2]) >= max(1, side // 200), "the stroke scales with the image"
    tag = [drawn.getpixel((side // 4 + 1, y)) != (255, 255, 255) for y in range(side // 4)]
    assert sum(tag) >= side / 30, "the label stands above the box and scales with the image"


def drawn_with(name: str, raw, image: Image.Image) -> Image.Image:
    kind = TYPES[name]
    assert isinstance(kind, DrawnType)
    return kind.draw([image], kind.parse(raw, [image.size]))[0]


@pytest.mark.parametrize("side", [256, 4096])
@pytest.mark.parametrize("ground", [*drawing.PALETTE[:1], "black", "white"])
def test_a_box_stands_out_on_any_ground(side, ground) -> None:
    box = [{"bbox": [side // 4, side // 4, side // 2, side // 2]}]
    drawn = drawn_with("boxes", box, Image.new("RGB", (side, side), ground))
    clean = ImageColor.getrgb(ground)
    strip = [drawn.getpixel((x, side // 2)) for x in range(side // 2)]
    changed = [pixel for pixel in strip if pixel != clean]
    assert len(changed) >= max(2, side // 300)
    contrast = max(sum(abs(a - b) for a, b in zip(pixel, clean, strict=True)) for pixel in changed)
    assert contrast > 200


def test_labels_hide_neither_each_other_nor_dots() -> None:
    """Two patches of equal colour and size: fewer pixels would show that one lies over the other."""
    far = [{"point": [40, 90], "label": "cup"}, {"point": [200, 90], "label": "cup"}]
    near = [{"point": [100, 90], "label": "cup"}, {"point": [103, 92], "label": "cup"}]
    white = Image.new("RGB", (256, 180), "white")

    def painted(raw) -> int:
        labels, dots = (
            drawn_with("points", [{**entry, **change} for entry in raw], white)
            for change in ({}, {"label": ""})
        )
        return sum(
            a != b
            for a, b in zip(labels.get_flattened_data(), dots.get_flattened_data(), strict=True)
        )

    assert painted(near) == painted(far) > 300


def test_a_label_without_room_above_stands_below() -> None:
    kind = TYPES["boxes"]
    assert isinstance(kind, DrawnType)
    raw = [{"bbox": [50, 0, 80, 40], "label": "cup"}]
    drawn = drawn_with("boxes", raw, Image.new("RGB", (256, 180), "white"))
    bare = drawn_with("boxes", [{**raw[0], "label": ""}], Image.new("RGB", (256, 180), "white"))
    box = ImageChops.difference(drawn, bare).getbbox()
    assert box is not None and box[1] >= 40


def tags(boxes, labels, size=(256, 180)) -> tuple[int, int, int, int] | None:
    """The bounds of all that `draw_tags` puts on a white image."""
    white = Image.new("RGB", size, "white")
    drawn = drawing.draw_tags(white, boxes, labels, ["black"] * len(boxes))
    return ImageChops.difference(drawn, white).getbbox()


def test_a_label_goes_where_it_hides_no_other_box() -> None:
    """Above the lower box lies the upper one; below it there is room."""
    boxes = [(60, 60, 140, 90), (60, 94, 140, 124)]
    place = tags(boxes, ["", "cup"])
    assert place is not None and place[1] >= 124
    place = tags(boxes[1:], ["cup"])
    assert place is not None and place[3] <= 95


@pytest.mark.parametrize(
    ("label", "size", "is_drawn"),
    [("blue rectangle", (64, 64), False), ("dog", (64, 64), True), ("dog", (32, 32), False)],
)
def test_a_label_never_hides_more_than_an_eighth_of_the_image(label, size, is_drawn) -> None:
    place = tags([(10, 20, 22, 28)], [label], size)
    assert (place is not None) == is_drawn
    if place is not None:
        left, top, right, bottom = place
        assert (right - left) * (bottom - top) <= drawing.LARGEST_TAG * size[0] * size[1]


def test_masks_have_a_rim_that_is_not_see_through() -> None:
    raw = [{"segmentation": [60, 60, 200, 60, 200, 150, 60, 150]}]
    drawn = drawn_with("masks", raw, Image.new("RGB", (256, 180), "white"))
    colour = ImageColor.getrgb(drawing.PALETTE[0])
    assert drawn.getpixel((61, 100)) == colour != drawn.getpixel((130, 100))


def test_the_palette_stays_apart_for_colour_blind_eyes() -> None:
    """Each pair differs in lightness or along the blue-yellow axis, which red-green blindness keeps."""

    def seen(colour: str) -> tuple[float, float]:
        red, green, blue = ImageColor.getrgb(colour)
        return 0.3 * red + 0.6 * green + 0.1 * blue, (red + green) / 2 - blue

    places = [seen(colour) for colour in drawing.PALETTE]
    for index, one in enumerate(places):
        for other in places[:index]:
            assert abs(one[0] - other[0]) + abs(one[1] - other[1]) > 30
