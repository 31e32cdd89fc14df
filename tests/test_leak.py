"""No leak: whatever is privileged, the student's token ids and pixels are the same to the byte."""

import functools
import json
import warnings

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen3VLModel

from dopd_vlm.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.data.annotations.registry import TYPES, forms
from dopd_vlm.data.embedded.sets import embedded_model
from dopd_vlm.data.embedded.shapes import COLOURS, SHAPES
from dopd_vlm.data.views import make_sample
from dopd_vlm.models.encoder import EncodedPrompt, encode_prompt
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.prompts import PromptTemplate, build_prompts
from dopd_vlm.train import train
from dopd_vlm.training import step
from dopd_vlm.types import Sample, View, ViewName

SIZES = ((64, 48), (40, 88), (96, 32))
IMAGES = tuple(tiny.image(*size, seed=seed) for seed, size in enumerate(SIZES))
KINDS = {"text": 0, "one image": 1, "three images": 3}
WORDS = (*COLOURS, *SHAPES, "step", "add", "take", "left", "<image>", "<|image_pad|>", "{question}")
"""Known to the embedded tokenizer, and some that mean something to templates or processor."""
PROCESSED = ("<|image_pad|>",)
"""What a prompt may hold only where an image is."""


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The embedded student, whose processor is the real Qwen3-VL one."""
    config = ModelConfig(path=str(embedded_model("student_vl")))
    return load_policy(config, device="cpu", trainable=False)


def base_row(num_images: int) -> dict:
    """What the student may see, and an annotation of its own."""
    return {
        "uid": "r", "images": list(IMAGES[:num_images]), "question": "how many red objects ?",
        "system": "you are a helpful assistant", "answer": "7", "annotations": {"captions": ["nothing"]},
    }  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    words = [word for word in WORDS if word not in PROCESSED]
    return st.lists(st.sampled_from(words), min_size=1, max_size=5).map(" ".join)


@st.composite
def boxes(draw, num_images: int) -> list[dict]:
    """Boxes inside the images, with a label and, for `ocr`, a text."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        image = draw(st.integers(0, num_images - 1))
        width, height = SIZES[image]
        x, y = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
        size = [draw(st.integers(1, width - x)), draw(st.integers(1, height - y))]
        made.append(
            {"bbox": [x, y, *size], "label": draw(texts()), "text": draw(texts()), "image": image}
        )
    return made


def corners(items: list[dict]) -> list[dict]:
    """A point at each box's corner."""
    return [{"point": b["bbox"][:2], "label": b["label"], "image": b["image"]} for b in items]


def halves(items: list[dict]) -> list[dict]:
    """The triangle above each box's diagonal as a mask."""
    made = []
    for box in items:
        x, y, width, height = box["bbox"]
        polygon = [x, y, x + width, y, x + width, y + height]
        made.append({"segmentation": [polygon], "label": box["label"], "image": box["image"]})
    return made


def values(num_images: int) -> dict[str, st.SearchStrategy]:
    """For every built-in type, values that fit a row with so many images."""
    lines = st.lists(texts(), min_size=1, max_size=3)
    found = {
        "captions": lines, "hints": lines, "summary": texts(), "solution": lines, "answer": texts(),
        "scene_graph": st.lists(st.tuples(texts(), texts(), texts()).map(list), min_size=1, max_size=2),
    }  # fmt: skip
    if num_images:
        inside = boxes(num_images)
        found |= dict.fromkeys(("boxes", "crops", "marks", "ocr"), inside)
        found |= {"points": inside.map(corners), "masks": inside.map(halves)}
    return found


def test_every_type_has_values_here():
    assert values(1).keys() == TYPES.keys()


@st.composite
def privileged(draw, num_images: int) -> tuple[dict, list]:
    """Fields that the student must not see, and which of the annotations the teacher is shown how."""
    known = values(num_images)
    chosen = draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=6))
    teacher = draw(
        st.sampled_from([None, None, [], [Image.new("RGB", (32, 80), "red")], list(IMAGES)])
    )
    fields = {
        "answer": draw(texts()),
        "annotations": {name: draw(known[name]) for name in chosen},
        "privileged_context": draw(st.none() | texts()),
        "teacher_images": teacher,
        "meta": draw(st.dictionaries(texts(), texts() | st.integers(), max_size=2)),
    }
    drawn = st.sampled_from(["text", "drawn", "both"])
    shown = [
        (name, draw(drawn) if len(forms(name)) > 1 and teacher is None else "text")
        for name in chosen
    ]
    return fields, shown


def encode(policy: Policy, row: dict, shown: list, view: ViewName) -> EncodedPrompt:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the type `answer` warns that it gives the answer away
        pair = build_prompts(make_sample(row, shown))
    return encode_prompt(policy.encoder, pair.view(view), uid="r")


def as_bytes(prompt: EncodedPrompt) -> dict[str, tuple]:
    """All tensors of a prompt: name -> shape, dtype and bytes."""
    tensors = {"input_ids": prompt.input_ids, **prompt.token_inputs, **prompt.image_tensors}
    return {
        name: (tuple(t.shape), str(t.dtype), t.numpy().tobytes())
        for name, t in tensors.items()
        if t is not None
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_s_ids_and_pixels_do_not_change(policy, kind):
    num_images = KINDS[kind]
    row = base_row(num_images)
    expected = as_bytes(encode(policy, row, ["captions"], "plain"))
    assert ("pixel_values" in expected) == (num_images > 0)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(privileged(num_images))
    def check(found) -> None:
        fields, shown = found
        try:
            found = encode(policy, {**row, **fields}, shown, "plain")
        except ValueError as error:
            assert "discloses" in str(error) or "hint" in str(error), error
            return
        assert as_bytes(found) == expected

    check()


@pytest.mark.parametrize("name", sorted(TYPES))
def test_the_teacher_s_ids_or_pixels_do_change(policy, name):
    first = {
        "boxes": [{"bbox": [4, 4, 30, 20], "label": "red circle", "text": "add"}],
        "points": [{"point": [4, 4], "label": "red circle"}],
        "masks": [{"segmentation": [[4, 4, 40, 4, 40, 40]], "label": "red circle"}],
        "scene_graph": [["red circle", "left", "blue square"]],
        "summary": "add step", "answer": "9",
    }  # fmt: skip
    first |= dict.fromkeys(("crops", "marks", "ocr"), first["boxes"])
    value = first.get(name, ["red step"])
    row = {**base_row(1), "annotations": {name: value}}
    if name == "answer":
        row["answer"] = value
    plain = as_bytes(encode(policy, row, [name], "plain"))
    text = as_bytes(encode(policy, row, [name], "privileged"))
    assert text["input_ids"] != plain["input_ids"]
    assert text["pixel_values"] == plain["pixel_values"]
    for form in forms(name)[1:]:
        drawn = as_bytes(encode(policy, row, [(name, form)], "privileged"))
        assert drawn["pixel_values"] != plain["pixel_values"]


def test_ready_made_context_and_images_change_the_teacher_s_prompt(policy):
    row = base_row(1)
    plain = as_bytes(encode(policy, row, [], "privileged"))
    for changed in ({"privileged_context": "red"}, {"teacher_images": [IMAGES[1]]}):
        assert as_bytes(encode(policy, {**row, **changed}, [], "privileged")) != plain


FORWARD, SEE, ROLL_OUT = Qwen3VLModel.forward, Qwen3VLModel.get_image_features, step.roll_out
ANNOTATED = {
    "sparse": {"captions": ["nothing"]},
    "rich": {"captions": ["red circle", "blue square"], "boxes": [{"bbox": [4, 4, 30, 20], "label": "red circle"}]},
}  # fmt: skip


def test_rollout_inputs_of_two_runs_with_other_annotations_are_identical(tmp_path, monkeypatch):
    seen: dict[str, list[dict[str, bytes]]] = {name: [] for name in ANNOTATED}
    losses = {}
    for name, annotations in ANNOTATED.items():
        record_prompts(monkeypatch, seen[name])
        rows = [
            {**base_row(number), "uid": f"r{number}", "annotations": annotations}
            for number in (1, 3)
        ]
        samples = [make_sample(row, ["captions", ("boxes", "both")]) for row in rows]
        result = train(run_config(tmp_path / name), samples)
        lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert seen["sparse"] == seen["rich"] and len(seen["rich"]) == 2
    assert all(found.keys() == {"pixel_values", "input_ids"} for found in seen["rich"])
    assert losses["sparse"] != losses["rich"]


def record_prompts(monkeypatch, into: list[dict[str, bytes]]) -> None:
    """Notes what the model reads with images while a training step samples, and only then."""
    is_sampling = []

    def sampling(*args, **options):
        is_sampling.append(True)
        try:
            return ROLL_OUT(*args, **options)
        finally:
            is_sampling.pop()

    def seeing(model, *args, **inputs):
        if is_sampling:
            into.append({"pixel_values": inputs["pixel_values"].numpy().tobytes()})
        return SEE(model, *args, **inputs)

    @functools.wraps(FORWARD)  # whoever asks for its arguments shall find them
    def reading(model, *args, **inputs):
        if is_sampling and inputs.get("mm_encoder_outputs") is not None:
            into[-1]["input_ids"] = inputs["input_ids"].numpy().tobytes()
        return FORWARD(model, *args, **inputs)

    monkeypatch.setattr(step, "roll_out", sampling)
    monkeypatch.setattr(Qwen3VLModel, "get_image_features", seeing)
    monkeypatch.setattr(Qwen3VLModel, "forward", reading)


def run_config(out) -> RunConfig:
    """Two steps on the embedded models."""
    student, teacher = (str(embedded_model(name)) for name in ("student_vl", "teacher_vl"))
    return RunConfig(
        student=ModelConfig(path=student), teacher=ModelConfig(path=teacher),
        data=DataConfig(train="memory"), name="run", output_dir=str(out),
        rollout=RolloutConfig(num_generations=1, max_completion_length=4),
        method=MethodConfig(name="priv_t_to_s"), optim=OptimConfig(batch_size=2, max_steps=2),
    )  # fmt: skip


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_privilege_in_the_system_turn_leaves_the_users_turn_and_the_plain_view_alone(system):
    sample = Sample(
        uid="a", question="how many?", answer="2", system=system,
        plain=View(images=(), context=""), privileged=View(images=(), context="a red cup"),
    )  # fmt: skip
    pair = build_prompts(sample, PromptTemplate(placement="system"))
    assert pair.privileged[-1] == pair.plain[-1] == {"role": "user", "content": "how many?"}
    told = pair.privileged[0]
    assert told["role"] == "system" and told["content"].endswith("Reference:\na red cup")
    assert told["content"].startswith(system or "Reference")
    assert pair.plain == build_prompts(sample).plain
