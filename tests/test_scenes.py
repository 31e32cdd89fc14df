"""The embedded scenes: exact places, held-out sprites, and nothing to be had from words alone."""

import math
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from dopd_vlm.data.annotations.disclosure import disclosed
from dopd_vlm.data.annotations.masks import bounds, decode_runs
from dopd_vlm.data.annotations.registry import TYPES, forms
from dopd_vlm.data.embedded.scene_images import SIZE, Crowd, Item, random_items, render
from dopd_vlm.data.embedded.scene_questions import DIRECTIONS, EXTREMES, MAKERS, QUARTERS
from dopd_vlm.data.embedded.scenes import SPLITS, SceneRows, make_row, puzzle_of
from dopd_vlm.data.embedded.sets import embedded_rows
from dopd_vlm.data.embedded.sprites import OPAQUE, cutout, photo, photos, sprites
from dopd_vlm.data.images import load_image
from dopd_vlm.data.validate import validate
from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.benchmarks.convert import to_rows
from dopd_vlm.eval.completions.generators import Completion
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.prompts import build_prompts

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "scripts" / "recipes" / "scenes.yaml"
SHIPPED = ("test", "shifted")
CHANCE = 0.25


@cache
def shipped(split: str):
    return embedded_rows(f"embedded:scenes/{split}")


def centre(box) -> tuple[float, float]:
    x, y, width, height = box["bbox"]
    return x + width / 2, y + height / 2


@pytest.mark.parametrize(("split", "num"), [("test", 200), ("shifted", 100)])
def test_every_shipped_row_is_good_in_every_form(split, num) -> None:
    rows = shipped(split)
    assert len(rows) == num
    report = validate(rows)
    assert (report.problems, report.num_images, report.unknown) == ([], num, {})
    chosen = [(n, forms(n)[-1]) for n in TYPES if n not in ("answer", "crops", "marks", "points")]
    samples, skipped = make_samples(rows[:15], chosen)
    assert len(samples) == 15 and not skipped
    assert {sample.plain.images[0].size for sample in samples} == {SIZE}


def test_boxes_and_masks_are_the_pixels_that_a_thing_changed() -> None:
    row = make_row("train", 3, 5)
    puzzle = puzzle_of("train", 3, 5)
    for box, point, mask, index in zip(
        *(row["annotations"][name] for name in ("boxes", "points", "masks")),
        puzzle.asked,
        strict=True,
    ):
        runs = mask["segmentation"]
        area = decode_runs(runs["counts"], runs["size"])
        left, top, right, bottom = bounds(area)
        assert box["bbox"] == [left, top, right - left, bottom - top]
        assert area[point["point"][1], point["point"][0]]
        item = puzzle.items[index]
        opaque = np.asarray(cutout(item.look).getchannel("A")) > OPAQUE
        whole = np.zeros_like(area)
        whole[item.top : item.box[3], item.left : item.box[2]] = opaque
        assert not (area & ~whole).any() and area.sum() >= 0.5 * whole.sum()


def test_masks_leave_out_what_lies_over_a_thing() -> None:
    generator = np.random.default_rng(0)
    kinds = [sprites("train")[0], sprites("train")[1]]
    crowd = Crowd(num=(2, 2), side=(60, 60), tag_px=10)
    one, other = random_items(generator, kinds, crowd)
    under = Item(look=one.look, left=50, top=50)
    over = Item(look=other.look, left=70, top=60)
    _, masks = render(generator, photos("train")[0], [under, over])
    _, alone = render(generator, photos("train")[0], [under])
    assert not (masks[0] & masks[1]).any()
    assert (masks[0] | masks[1])[alone[0]].all() and masks[0].sum() < alone[0].sum()


def check_which(row, boxes) -> str:
    way = next(words for words in EXTREMES if words in row["question"])
    axis, sign = EXTREMES[way]
    return min(boxes, key=lambda box: sign * centre(box)[axis])["label"]


def check_where(row, boxes) -> str:
    (box,) = boxes
    x, y = centre(box)
    return QUARTERS[2 * (y > SIZE[1] / 2) + (x > SIZE[0] / 2)]


def check_relation(row, boxes) -> str:
    one, other = (centre(box) for box in boxes)
    assert f"{boxes[0]['label']}, seen from the {boxes[1]['label']}" in row["question"]
    offset = [a - b for a, b in zip(one, other, strict=True)]
    axis = int(abs(offset[1]) > abs(offset[0]))
    return next(n for n, way in DIRECTIONS.items() if way == (axis, 1 if offset[axis] > 0 else -1))


def check_text(row, boxes) -> str:
    x, bottom = centre(boxes[0])[0], boxes[0]["bbox"][1] + boxes[0]["bbox"][3]

    def distance(word) -> float:
        return abs(centre(word)[0] - x) + abs(word["bbox"][1] - bottom)

    return min(row["annotations"]["ocr"], key=distance)["text"]


@pytest.mark.parametrize("split", SHIPPED)
def test_answers_follow_from_the_places(split) -> None:
    checks = {f.__name__[6:]: f for f in (check_which, check_where, check_relation, check_text)}
    for row in shipped(split):
        boxes, kind = row["annotations"]["boxes"], row["meta"]["kind"]
        if kind == "count":
            assert int(row["answer"]) == len(boxes)
        else:
            assert row["choices"][row["answer"]] == checks[kind](row, boxes), row["uid"]
            assert len(set(row["choices"].values())) == 4


@pytest.mark.parametrize("split", SHIPPED)
def test_hints_summaries_and_captions_do_not_tell(split) -> None:
    for row in shipped(split):
        found = row["annotations"]
        for text in [*found["hints"], found["summary"]]:
            assert disclosed(text, row["answer"], row["choices"]) is None
        if row["meta"]["kind"] != "which":  # its caption names every thing, not where it is
            assert disclosed(found["captions"][0], row["answer"], row["choices"]) is None
        asked = {box["label"] for box in found["boxes"]}
        assert not any({one, other} <= asked for one, _, other in found["scene_graph"])


def test_distractors_are_from_the_same_scene() -> None:
    for row in shipped("test"):
        words = set(row["choices"].values()) if row["choices"] else set()
        if row["meta"]["kind"] == "which":
            assert words == {box["label"] for box in row["annotations"]["boxes"]}
        elif row["meta"]["kind"] == "text":
            assert words <= {word["text"] for word in row["annotations"]["ocr"]}


def test_sprites_and_photographs_of_the_tests_are_in_no_training_row() -> None:
    labels = {split: {sprite.label for sprite in sprites(split)} for split in ("train", "test")}
    assert not labels["train"] & labels["test"] and min(map(len, labels.values())) >= 50
    assert not set(photos("train")) & set(photos("test"))
    for split in SHIPPED:
        for row in shipped(split):
            assert row["meta"]["background"] in photos("test")
            assert {box["label"] for box in row["annotations"]["boxes"]} <= labels["test"]
    for index in range(60):
        assert {item.label for item in puzzle_of("train", 0, index).items} <= labels["train"]


@pytest.mark.parametrize("split", SHIPPED)
def test_answers_take_turns(split) -> None:
    for kind in MAKERS:
        rows = [row for row in shipped(split) if row["meta"]["kind"] == kind]
        answers = Counter(row["answer"] for row in rows)
        assert set(answers.values()) == {len(rows) // 4}
        if kind in ("where", "relation"):
            words = Counter(row["choices"][row["answer"]] for row in rows)
            assert set(words.values()) == {len(rows) // 4}


class WordCounts:
    """What a reader of the words alone can learn: how often a word came with an answer.

    Naive Bayes with one added count; of a choice it scores the letter and the option's words.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple, Counter] = defaultdict(Counter)

    @staticmethod
    def candidates(kind, choices):
        return list(choices.items()) if choices else [(str(n), str(n)) for n in range(1, 5)]

    @staticmethod
    def clues(kind, question, letter, text):
        yield kind, "letter", letter
        for word in text.split():
            yield kind, "option", word
        for word in question.rstrip("?").split():
            yield kind, "pair", word, letter
            yield kind, "words", word, text

    def learn(self, kind, question, choices, answer) -> None:
        for letter, text in self.candidates(kind, choices):
            for clue in self.clues(kind, question, letter, text):
                self.counts[clue][letter == answer] += 1

    def guess(self, kind, question, choices) -> str:
        def score(option) -> float:
            seen = [self.counts[clue] for clue in self.clues(kind, question, *option)]
            return sum(math.log((c[True] + 1) / (c[True] + c[False] + 4)) for c in seen)

        return max(self.candidates(kind, choices), key=score)[0]


def test_words_alone_are_at_chance() -> None:
    """Learns 600 questions about the very same things and images, seed 7, and answers the shipped
    300: not over chance by more than two standard errors."""
    reader = WordCounts()
    for index in range(600):
        puzzle = puzzle_of("test", 7, index)
        reader.learn(puzzle.kind, puzzle.question, puzzle.choices, puzzle.answer)
    right = [
        reader.guess(row["meta"]["kind"], row["question"], row["choices"]) == row["answer"]
        for split in SHIPPED
        for row in shipped(split)
    ]
    assert len(right) == 300
    tolerance = 2 * math.sqrt(CHANCE * (1 - CHANCE) / len(right))
    assert sum(right) / len(right) <= CHANCE + tolerance


def test_the_words_baseline_learns_where_there_is_something_to_learn() -> None:
    reader = WordCounts()
    for index in range(150):
        puzzle = puzzle_of("train", 7, index)
        told = puzzle.question.replace("the ", f"the {puzzle.answer} ")
        reader.learn(puzzle.kind, told, puzzle.choices, puzzle.answer)
    puzzles = [puzzle_of("train", 8, index) for index in range(60)]
    right = sum(
        reader.guess(p.kind, p.question.replace("the ", f"the {p.answer} "), p.choices) == p.answer
        for p in puzzles
    )
    assert right > 36


@pytest.mark.parametrize("split", SHIPPED)
def test_shipped_rows_are_those_the_generator_makes(split) -> None:
    made = SceneRows(split, range(6))
    for ours, theirs in zip(shipped(split)[:6], made, strict=True):
        for key in ("uid", "question", "answer", "choices", "annotations", "meta"):
            assert ours[key] == theirs[key]
        stored = load_image(ours["images"][0], root=ours["origin"]["root"])
        difference = np.abs(np.asarray(stored, float) - np.asarray(theirs["images"][0], float))
        assert difference.mean() < 12  # stored as WebP


def test_rows_depend_on_split_seed_and_index_alone_and_are_made_when_asked_for() -> None:
    many = embedded_rows("embedded:scenes/train?num=1000000&seed=4")
    assert len(many) == 1_000_000 and len(many[10:20]) == 10
    one, same = many[13], many[10:20][3]
    assert one["uid"] == same["uid"] and one["annotations"] == same["annotations"]
    assert one["images"][0].tobytes() == same["images"][0].tobytes()
    assert one["annotations"] != embedded_rows("embedded:scenes/train?num=14")[13]["annotations"]
    with pytest.raises(IndexError):
        many[1_000_000]
    with pytest.raises(ValueError, match="num"):
        embedded_rows("embedded:scenes/train?nmu=3")


def test_composing_leaves_sprites_and_photographs_alone() -> None:
    name = photos("train")[0]
    before = photo(name).tobytes()
    list(SceneRows("train", range(4)))
    assert photo(name).tobytes() == before


def test_the_task_counts_letters_and_numbers_by_kind() -> None:
    task = load_benchmark("scenes")
    assert task.rows == "embedded:scenes/test"
    assert load_benchmark("scenes_shifted").rows == "embedded:scenes/shifted"
    rows = to_rows(task, shipped("test")[:20])
    samples, _ = make_samples(rows, list(task.annotations))
    texts = {
        str(build_prompts(s, task.prompts).plain[-1]["content"][1:]): s.answer for s in samples
    }
    assert len(texts) == 20

    def complete(prompts, generation, seed):
        return [
            Completion(
                text=f"The answer is {texts[str(prompt[-1]['content'][1:])]}.",
                finish_reason="stop", num_tokens=1,
            )
            for prompt in prompts
        ]  # fmt: skip

    found = evaluate("fake", "scenes", samples=samples, generate=complete)
    assert (found.accuracy, found.n) == (1.0, 20)


def laptop_command() -> list[str]:
    """The embedded models' command in the recipe's header, without `dopd`."""
    lines = [line[1:] for line in RECIPE.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    (command,) = [line for line in text.splitlines() if "embedded:student_vl" in line]
    return shlex.split(command, comments=True)[1:]


@pytest.mark.slow
def test_the_recipe_s_laptop_command_trains(tmp_path) -> None:
    """Two steps of it; that they teach nothing at this scale is written in its header."""
    done = subprocess.run(
        [sys.executable, "-m", "dopd_vlm.scripts.main", *laptop_command(), f"output_dir={tmp_path}",
         "optim.max_steps=2", "evaluation.tasks=[]"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout and (tmp_path / "scenes" / "checkpoint").is_dir()
    config = yaml.safe_load((tmp_path / "scenes" / "config.yaml").read_text())
    assert config["data"]["annotations"] == ["boxes"]


def test_licences_of_all_parts_are_there() -> None:
    parts = ROOT / "data" / "assets" / "scenes_parts"
    attribution = (parts / "ATTRIBUTION.md").read_text()
    photographs = {path.name for path in parts.glob("*.jpg")}
    assert photographs == set(re.findall(r"(?m)^\| (\w+\.jpg) \|", attribution))
    assert photographs == {f"{name}.jpg" for split in SPLITS for name in photos(split)}
    emoji = (parts / "LICENSE-fluent-emoji.txt").read_text()
    assert "Copyright (c) Microsoft Corporation." in emoji
    assert "Copyright (c) 2023 LobeHub" in emoji and "Permission is hereby granted" in emoji
    assert "CC0 1.0 Universal" in (parts / "LICENSE-CC0-1.0.txt").read_text()
