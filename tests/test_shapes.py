"""The embedded sets: exact boxes, repeatable rows, no unknown token, checkpoints that work."""

from functools import cache

import numpy as np
import pytest

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.annotations.disclosure import disclosed
from dopd_vlm.data.embedded import lists, shapes
from dopd_vlm.data.embedded.sets import MODELS, embedded_model, embedded_rows
from dopd_vlm.data.images import load_image
from dopd_vlm.data.views import make_sample
from dopd_vlm.models.encoder import encode_prompt
from dopd_vlm.models.policy import Policy, check_vocabularies, load_policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout import generate
from dopd_vlm.types import Sampling

SHIPPED = ("shapes/test", "shapes/shifted", "lists/test", "lists/shifted")
FORMS = {"shapes": ["captions", "hints", "boxes"], "lists": ["hints"]}


@cache
def policy(name: str) -> Policy:
    """A shipped checkpoint, loaded once."""
    return load_policy(
        ModelConfig(path=str(embedded_model(name))), device="cpu", trainable="student" in name
    )


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_boxes_hold_exactly_the_pixels_of_their_object(split):
    for row in shapes.rows(split, 12, seed=5, dim=0.0):
        pixels = np.asarray(row["images"][0]).astype(int)
        is_inside = np.zeros(pixels.shape[:2], dtype=bool)
        for box in row["annotations"]["boxes"]:
            x, y, width, height = box["bbox"]
            colour = shapes.COLOURS[box["label"].split()[0]]
            painted = (pixels[y : y + height, x : x + width] == colour).all(-1)
            assert painted.any(0).all() and painted.any(1).all()
            is_inside[y : y + height, x : x + width] = True
        background = pixels[0, 0] if not is_inside[0, 0] else (235, 235, 235)
        assert (pixels[~is_inside] == background).all()


def test_rows_depend_on_split_seed_and_index_alone():
    long, short = shapes.rows("train", 5, seed=3), shapes.rows("train", 2, seed=3)
    for one, other in zip(short, long, strict=False):
        assert one["uid"] == other["uid"] and one["annotations"] == other["annotations"]
        assert one["images"][0].tobytes() == other["images"][0].tobytes()
    scenes = [shapes.rows("train", 1, seed=seed)[0]["annotations"] for seed in (0, 1)]
    assert scenes[0] != scenes[1]
    assert lists.rows("train", 3, seed=2)[:2] == lists.rows("train", 2, seed=2)


@pytest.mark.parametrize("name", ["shapes", "lists"])
@pytest.mark.parametrize("split", ["test", "shifted"])
def test_shipped_rows_are_those_the_generator_makes(name, split):
    shipped = embedded_rows(f"embedded:{name}/{split}?num=7")
    made = embedded_rows(f"embedded:{name}/{split}?num=7&seed=0")
    for ours, theirs in zip(shipped, made, strict=True):
        for key in ("uid", "question", "answer", "annotations", "meta"):
            assert ours[key] == theirs[key]
        for file, image in zip(ours["images"], theirs["images"], strict=True):
            stored = load_image(file, root=ours["origin"]["root"])
            assert stored.tobytes() == image.tobytes()


def test_answers_follow_from_the_annotations():
    for row in shapes.rows("shifted", 40, seed=1):
        asked = row["question"].split()[2]
        labels = [box["label"].split() for box in row["annotations"]["boxes"]]
        assert int(row["answer"]) == sum(asked in label for label in labels)
        assert any(tuple(label) in shapes.HELD_OUT for label in labels)
    for row in lists.rows("shifted", 40, seed=1):
        start, *changes, _ = row["question"].split(". ")
        value = int(start.split()[2])
        for change in changes:
            _, verb, size = change.split()
            value += int(size) if lists.VERBS[verb] == "add" else -int(size)
            assert 0 <= value <= lists.LIMIT
        assert int(row["answer"]) == value


def test_the_pairs_of_the_shifted_set_are_nowhere_else():
    for split in ("train", "test"):
        for row in shapes.rows(split, 60, seed=4):
            labels = [tuple(box["label"].split()) for box in row["annotations"]["boxes"]]
            assert not set(labels) & set(shapes.HELD_OUT)


def test_counts_are_no_easy_guess():
    answers = [row["answer"] for row in embedded_rows("embedded:shapes/test")]
    assert max(answers.count(count) for count in set(answers)) < 0.3 * len(answers)


@pytest.mark.parametrize("source", SHIPPED)
def test_hints_and_captions_do_not_disclose_the_answer(source):
    for row in embedded_rows(f"embedded:{source}"):
        make_sample(row, ["hints"])  # its check raises
        for caption in row["annotations"].get("captions", []):
            assert disclosed(caption, row["answer"]) is None


@pytest.mark.parametrize("source", SHIPPED)
def test_every_form_is_made_of_known_tokens(source):
    name = source.split("/")[0]
    model = policy("student_vl" if name == "shapes" else "student_text")
    unknown = model.tokenizer.unk_token_id
    for row in embedded_rows(f"embedded:{source}?num=30"):
        pair = build_prompts(make_sample(row, FORMS[name]))
        for messages in (pair.plain, pair.privileged):
            assert unknown not in encode_prompt(model.encoder, messages, uid=pair.uid).input_ids
        assert unknown not in model.tokenizer(row["meta"]["solution"]).input_ids


def test_boxes_as_text_have_a_token_for_every_place():
    tokenizer = policy("teacher_vl").tokenizer
    text = str([{"bbox_2d": list(range(1001)), "label": "red circle"}])
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


@pytest.mark.parametrize("kind", ["vl", "text"])
def test_teacher_and_student_share_the_vocabulary(kind):
    student, teacher = policy(f"student_{kind}"), policy(f"teacher_{kind}")
    check_vocabularies(student, teacher)
    assert student.model.num_parameters() < teacher.model.num_parameters() / 2
    end = student.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert student.eos_ids == teacher.eos_ids == (end,) and student.pad_id != end


def accuracy(name: str, view: str, num: int = 40) -> float:
    """Share of right greedy answers on the first rows of the normal test set."""
    is_visual = name.endswith("vl")
    rows = embedded_rows(f"embedded:{'shapes' if is_visual else 'lists'}/test?num={num}")
    pairs = [build_prompts(make_sample(r, ["captions" if is_visual else "hints"])) for r in rows]
    prompts = [encode_prompt(policy(name).encoder, pair.view(view)) for pair in pairs]  # type: ignore[arg-type]
    done = generate(policy(name), prompts, Sampling(max_completion_length=32))
    texts = [policy(name).tokenizer.decode(one.completion_ids[:-1]) for one in done]
    return sum(t.endswith(f"answer {r['answer']}") for t, r in zip(texts, rows, strict=True)) / num


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_are_strong_with_privilege_and_only_the_student_is_weak_without(name):
    assert accuracy(name, "privileged") >= 0.9
    plain = accuracy(name, "plain")
    assert 0.35 <= plain <= 0.85 if name.startswith("student") else plain >= 0.85


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("embedded:shape/test", "shapes"),
        ("embedded:shapes/tests", "test"),
        ("embedded:shapes/train?nun=3", "num"),
        ("embedded:lists/train?num=x", "no number"),
    ],
)
def test_wrong_sources_name_what_is_near(source, message):
    with pytest.raises(ValueError, match=message):
        embedded_rows(source)
    with pytest.raises(ValueError, match="teacher_vl"):
        embedded_model("embedded:teacher_lv")
