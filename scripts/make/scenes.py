"""Makes the embedded scenes: cut-outs and photographs they are composed of, and the shipped rows.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python scripts/make/scenes.py parts package/assets     # needs scikit-image too
    python scripts/make/scenes.py rows                     # from the parts alone

`parts` writes data/assets/scenes_parts: one sheet of 256 x 256 renders scaled down, with the
names below, and scaled copies of scikit-image's photographs. `rows` writes data/assets/scenes
(split test) and data/assets/scenes_shifted: images as WebP with metadata.jsonl beside them.
Training rows are composed when asked for (`embedded:scenes/train?num=2000`). Sprites and
photographs of the two test sets are in no training row.
"""

import argparse
import json
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dopd_vlm.data.embedded.scenes import SceneRows
from dopd_vlm.data.embedded.sets import ASSETS
from dopd_vlm.data.embedded.sprites import COLUMNS, PARTS, TILE

SHEET_QUALITY, PHOTO_QUALITY, ROW_QUALITY = 76, 78, 50
PHOTO_SIDE = 440
NUM_TEST, NUM_SHIFTED = 200, 100
PHOTOS = {
    "train": ("astronaut", "chelsea", "rocket", "gravel", "hubble_deep_field", "clock"),
    "test": ("coffee", "camera", "coins", "grass", "brick", "retina"),
}
SPRITES = {
    "train": (
        "dog elephant penguin turtle honeybee=bee crab whale lizard rabbit cow goat hedgehog "
        "parrot swan mouse=mouse/mice lady_beetle=ladybird zebra_face=zebra red_apple=apple pear "
        "strawberry=strawberry/strawberries carrot tomato=tomato/tomatoes hamburger taco doughnut "
        "cupcake avocado pretzel peach=peach/peaches bicycle taxi ambulance tractor sailboat "
        "balloon key hammer ladder broom chair bell trumpet television "
        "battery=battery/batteries microscope closed_book=book ring t-shirt "
        "school_satchel=backpack trophy=trophy/trophies soccer_ball anchor tent sunflower rose "
        "christmas_tree=Christmas_tree skateboard wrapped_present=present "
        "electric_light_bulb=light_bulb mirror jar bone motor_scooter accordion billed_cap=cap "
        "hook ice_cube robot_face=robot sled compass=compass/compasses boxing_glove toolbox="
        "toolbox/toolboxes paperclip fire_extinguisher hiking_boot=boot video_game=game_controller "
        "personal_computer=laptop microphone hocho=knife/knives plunger bathtub "
        "jigsaw_puzzle_piece=puzzle_piece maple_leaf=maple_leaf/maple_leaves potted_plant onion "
        "bell_pepper=pepper croissant waffle birthday_cake=cake"
    ),
    "test": (
        "duck tropical_fish=fish/fish owl snail butterfly=butterfly/butterflies "
        "octopus=octopus/octopuses dolphin snake horse pig kangaroo flamingo rooster tiger banana "
        "lemon pineapple mushroom egg hot_dog slice_of_pizza=slice_of_pizza/slices_of_pizza cookie "
        "sandwich=sandwich/sandwiches cucumber bus=bus/buses helicopter kite "
        "closed_umbrella=umbrella lock screwdriver bucket toothbrush=toothbrush/toothbrushes door "
        "guitar violin radio magnet telescope crown top_hat dress=dress/dresses briefcase "
        "basketball_and_hoop=basketball boomerang cactus=cactus/cactuses tulip teddy_bear axe "
        "feather scarf=scarf/scarves basket hourglass=hourglass/hourglasses "
        "snowman_without_snow=snowman/snowmen"
    ),
}
"""Unicode name = what we call one / many of it; spaces are underscores."""


def main(arguments: Sequence[str]) -> int:
    """Writes what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("parts", "rows"))
    parser.add_argument("sprites", nargs="?", type=Path, help="package/assets, for `parts`")
    options = parser.parse_args(arguments)
    if options.what == "rows":
        write_rows("test", ASSETS / "scenes", NUM_TEST)
        write_rows("shifted", ASSETS / "scenes_shifted", NUM_SHIFTED)
        return 0
    if options.sprites is None or not options.sprites.is_dir():
        print(f"no folder of sprites: {options.sprites}; see --help", file=sys.stderr)
        return 2
    PARTS.mkdir(parents=True, exist_ok=True)
    write_sheet(options.sprites)
    write_photos()
    return 0


def write_sheet(folder: Path) -> None:
    """sprites.webp, COLUMNS tiles of TILE pixels a line, and sprites.json in the same order."""
    entries = [_entry(word, split) for split, words in SPRITES.items() for word in words.split()]
    size = (COLUMNS * TILE, -(-len(entries) // COLUMNS) * TILE)
    sheet = Image.new("RGBA", size)
    for index, (name, _) in enumerate(entries):
        with Image.open(folder / f"{ord(unicodedata.lookup(name)):x}.webp") as stored:
            tile = stored.convert("RGBA").resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (index % COLUMNS * TILE, index // COLUMNS * TILE))
    sheet.save(PARTS / "sprites.webp", quality=SHEET_QUALITY, method=6)
    lines = [json.dumps(entry) for _, entry in entries]
    (PARTS / "sprites.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{len(entries)} sprites in {PARTS}")


def write_photos() -> None:
    """The photographs as RGB JPEG, longest side PHOTO_SIDE, and which split has which."""
    import skimage.data

    for name in [name for names in PHOTOS.values() for name in names]:
        photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
        photo.save(PARTS / f"{name}.jpg", quality=PHOTO_QUALITY)
    (PARTS / "photos.json").write_text(json.dumps(PHOTOS, indent=1) + "\n", encoding="utf-8")


def write_rows(split: str, folder: Path, num: int) -> None:
    """`num` rows of the split with seed 0, one WebP a row."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = []
    for index, row in enumerate(SceneRows(split, range(num))):
        name = f"{index:03d}.webp"
        row["images"][0].save(folder / name, quality=ROW_QUALITY, method=6)
        lines.append(json.dumps({**row, "images": [name]}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{num} rows in {folder}")


def _entry(word: str, split: str) -> tuple[str, dict[str, str]]:
    name, _, ours = word.replace("_", " ").partition("=")
    label, _, plural = (ours or name).partition("/")
    return name, {"label": label, "plural": plural or f"{label}s", "split": split}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
