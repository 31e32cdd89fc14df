"""Writes the example rows on real photographs: python scripts/make/photos.py [OUT].

Images: scikit-image's free photographs (data/assets/photos/ATTRIBUTION.md), scaled down.
Questions, boxes, captions and hints are our own; boxes are XYWH in pixels of the scaled images.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import skimage.data
from PIL import Image

LONGEST_SIDE = 448
JPEG_QUALITY = 88
IMAGES = ("astronaut", "camera", "chelsea", "coffee", "rocket", "coins")
PLACEMENT = {"A": "to the left", "B": "to the right", "C": "above", "D": "below"}
ROWS = [
    {
        "uid": "astronaut-model",
        "images": ["astronaut"],
        "question": "What stands in the background, beside the astronaut's head?",
        "choices": {
            "A": "a radio telescope",
            "B": "a model of a space shuttle",
            "C": "a satellite with solar panels",
            "D": "a globe",
        },
        "answer": "B",
        "annotations": {
            "boxes": [{"bbox": [308, 0, 106, 247], "label": "object in the background"}],
            "captions": [
                "A smiling astronaut in an orange suit sits before a flag, helmet in arm."
            ],
            "hints": [
                "Look at the dark stand on the right, behind the shoulder.",
                "Describe the shape on top of it: a wide tank, two thin tubes, a white body.",
                "Compare each option with that shape.",
            ],
            "summary": "Look at the object on the dark stand and compare its shape with each option.",
            "solution": [
                "The stand is on the right, behind the shoulder.",
                "On top stand a wide tank, two thin tubes and a white body with wings.",
                "That is a space shuttle, so the answer is B.",
            ],
        },
    },
    {
        "uid": "astronaut-visor",
        "images": ["astronaut"],
        "question": "What shape has the bright white reflection on the visor of the helmet?",
        "answer": "rectangle",
        "annotations": {
            "boxes": [
                {"bbox": [243, 302, 200, 146], "label": "helmet"},
                {"bbox": [302, 369, 25, 34], "label": "reflection"},
            ],
            "captions": ["The astronaut rests an arm beside a white helmet with a black visor."],
            "hints": [
                "Find the helmet in the lower right corner.",
                "Find the brightest spot on its dark visor.",
                "Count the sides and corners of that spot.",
            ],
            "summary": "Find the brightest spot on the visor and count its sides.",
            "solution": [
                "The helmet lies in the lower right corner.",
                "The brightest spot is on the left half of its visor.",
                "It has four straight sides and square corners, so it is a rectangle.",
            ],
        },
    },
    {
        "uid": "camera-legs",
        "images": ["camera"],
        "question": "How many legs does the stand under the camera have?",
        "answer": "3",
        "answer_type": "number",
        "annotations": {
            "boxes": [
                {"bbox": [224, 119, 63, 45], "label": "camera"},
                {"bbox": [201, 170, 154, 278], "label": "stand"},
            ],
            "captions": ["A man in a dark coat bends to look through a camera on a lawn."],
            "hints": [
                "Follow the pole under the camera down to the joint.",
                "From the joint, follow each leg to the grass.",
                "Count the places where a leg meets the ground, and do not count the pole.",
            ],
            "summary": "Follow every leg from the joint under the camera to the grass and count where they end.",
            "solution": [
                "The pole ends in a joint below the camera.",
                "Legs leave it to the left, to the front and to the right.",
                "Their number is 3.",
            ],
        },
    },
    {
        "uid": "cat-eyes",
        "images": ["chelsea"],
        "question": "What colour are the cat's eyes?",
        "choices": {"A": "blue", "B": "brown", "C": "green", "D": "orange"},
        "answer": "C",
        "annotations": {
            "boxes": [
                {"bbox": [129, 85, 73, 59], "label": "eye"},
                {"bbox": [291, 107, 51, 55], "label": "eye"},
            ],
            "captions": ["A tabby cat with long white whiskers looks to the side."],
            "hints": [
                "Look at both eyes and leave out the black pupils.",
                "Judge the ring between the pupil and the dark rim.",
                "Do not take the colour of the fur or the nose.",
            ],
            "summary": "Judge the ring around the pupils, not the fur.",
            "solution": [
                "The eyes are in the upper half, left and right of the nose.",
                "The ring around both pupils is green.",
                "So the answer is C.",
            ],
        },
    },
    {
        "uid": "coffee-spoon",
        "images": ["coffee"],
        "question": "Where is the spoon, seen from the handle of the cup?",
        "choices": PLACEMENT,
        "answer": "B",
        "annotations": {
            "boxes": [
                {"bbox": [146, 173, 52, 56], "label": "handle"},
                {"bbox": [242, 49, 75, 194], "label": "spoon"},
            ],
            "captions": ["A small cup of coffee stands on a red saucer on a wooden table."],
            "hints": [
                "Find the handle of the cup near the front of the saucer.",
                "Find the bowl of the spoon, at about the same height.",
                "Compare how far each is from the edges of the picture.",
            ],
            "summary": "Find handle and spoon and compare how far each is from the sides of the picture.",
            "solution": [
                "The handle is at about 38% of the width.",
                "The bowl of the spoon is at about 62% of the width, at the same height.",
                "So the spoon is to the right, answer B.",
            ],
        },
    },
    {
        "uid": "rocket-towers",
        "images": ["rocket"],
        "question": "How many lattice towers can be seen around the rocket?",
        "answer": "4",
        "answer_type": "number",
        "annotations": {
            "boxes": [
                {"bbox": [212, 89, 25, 197], "label": "rocket"},
                {"bbox": [0, 0, 63, 299], "label": "tower"},
                {"bbox": [124, 88, 22, 209], "label": "tower"},
                {"bbox": [304, 88, 25, 209], "label": "tower"},
                {"bbox": [392, 0, 56, 299], "label": "tower"},
            ],
            "captions": ["A white rocket stands on its launch pad at dusk between bright lamps."],
            "hints": [
                "Find the rocket in the middle; it is not a tower.",
                "Count the towers on its left, near and far.",
                "Count those on its right, near and far, and add.",
            ],
            "summary": "Count the lattice towers left of the rocket, then those right of it, and add.",
            "solution": [
                "Left of the rocket stand 2 towers, a near and a far one.",
                "Right of it stand 2 more.",
                "2 + 2 = 4.",
            ],
        },
    },
    {
        "uid": "coins-count",
        "images": ["coins"],
        "question": "How many coins are shown?",
        "answer": "24",
        "answer_type": "number",
        "annotations": {
            "boxes": [
                {"bbox": [22, 17, 343, 56], "label": "row of coins"},
                {"bbox": [24, 95, 331, 52], "label": "row of coins"},
                {"bbox": [24, 156, 356, 64], "label": "row of coins"},
                {"bbox": [18, 232, 362, 59], "label": "row of coins"},
            ],
            "captions": ["Old coins lie in even rows on a dark ground."],
            "hints": [
                "Count the rows from top to bottom.",
                "Count the coins in one row and check that all rows are alike.",
                "Multiply the two counts.",
            ],
            "summary": "Count rows and coins in a row, and multiply.",
            "solution": [
                "There are 4 rows.",
                "Each row has 6 coins.",
                "4 x 6 = 24.",
            ],
        },
    },
    {
        "uid": "pair-drink",
        "images": ["chelsea", "coffee"],
        "question": "One: <image>Two: <image>Which picture shows something to drink?",
        "choices": {"A": "the first", "B": "the second", "C": "both", "D": "neither"},
        "answer": "B",
        "annotations": {
            "boxes": [
                {"bbox": [129, 85, 73, 59], "label": "eye", "image": 0},
                {"bbox": [127, 15, 185, 216], "label": "cup", "image": 1},
            ],
            "captions": ["A tabby cat looks to the side.", "A cup stands on a red saucer."],
            "hints": [
                "Name the main thing in each picture.",
                "Ask of each whether it holds a liquid.",
            ],
            "summary": "Name what each picture shows and ask whether one can drink it.",
            "solution": [
                "The first picture shows a cat.",
                "The second shows a cup of coffee.",
                "So the answer is B.",
            ],
        },
    },
]


def main(arguments: Sequence[str]) -> None:
    """Writes images and metadata.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[2] / "data" / "assets" / "photos"
    parser.add_argument("out", nargs="?", type=Path, default=default)
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for name in IMAGES:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        image.save(out / f"{name}.jpg", quality=JPEG_QUALITY)
    lines = [json.dumps(_row(row)) for row in ROWS]
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(ROWS)} rows in {out}")


def _row(row: dict) -> dict:
    meta = {"source": "scikit-image", "licence": "see ATTRIBUTION.md", "split": "example"}
    return {**row, "images": [f"{name}.jpg" for name in row["images"]], "meta": meta}


if __name__ == "__main__":
    main(sys.argv[1:])
