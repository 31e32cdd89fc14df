"""images.py and image_features.py: each image once through processor and tower, and the same step as without."""

from dataclasses import replace

import pytest
import tiny
import torch
from PIL import Image
from test_step import UIDS, make_rollouts, make_state

from dopd_vlm.models.encoder import encode_prompt
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.image_features import StepFeatures, image_inputs
from dopd_vlm.models.images import CachedImageProcessor
from dopd_vlm.models.policy import checkpoint_activations_
from dopd_vlm.prompts import build_prompts
from dopd_vlm.training import step, targets
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import Clock, distil_step, train_step
from dopd_vlm.types import Sample, View

FIRST, SECOND, DRAWN = (
    tiny.image(*size, seed=i) for i, size in enumerate(((48, 32), (32, 80), (48, 32)))
)


def rows() -> list[Sample]:
    """Two questions about one image, one of which is drawn on for the teacher; two images, one twice."""
    one, other, several = (tiny.vl_sample(uid, seed=i) for i, uid in enumerate(UIDS))
    return [
        replace(one, plain=View(images=(FIRST,)), privileged=View(images=(FIRST,), context="box 1")),
        replace(other, plain=View(images=(copy_of(FIRST),)), privileged=View(images=(DRAWN,), context="b")),
        replace(
            several, plain=View(images=(SECOND, FIRST, SECOND)),
            privileged=View(images=(SECOND, DRAWN, SECOND), context="boxes"),
        ),
    ]  # fmt: skip


def copy_of(image: Image.Image) -> Image.Image:
    return image.copy()


def towers(state: TrainState) -> dict[str, list[int]]:
    """Images of every pass through each model's tower from here on, and whether gradient was on."""
    seen: dict[str, list] = {}
    for name in ("student", "teacher"):
        calls = seen.setdefault(name, [])
        visual = getattr(state, name).backbone.get_encoder(modality="image")
        visual.register_forward_pre_hook(
            lambda _, args, kwargs, calls=calls: calls.append(
                (len(kwargs["grid_thw"]), torch.is_grad_enabled())
            ),
            with_kwargs=True,
        )
    return seen


def update(state: TrainState):
    """Loss and gradients of a step on the rows above."""
    caught = {}
    state.optimizer.register_step_pre_hook(
        lambda *_: caught.update(
            {n: p.grad.clone() for n, p in state.student.model.named_parameters() if p.grad is not None}
        )
    )  # fmt: skip
    samples = [encode_sample(state, sample) for sample in rows()]
    return distil_step(state, samples, make_rollouts(), Clock()), caught


@pytest.mark.parametrize("name", ["dopd", "priv_t_to_priv_s"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_with_shared_features_is_the_step_with_pixels(name, recompute, monkeypatch):
    updates = []
    for is_shared in (True, False):
        state = make_state(name, micro=2, score=4)
        if recompute:
            optim = replace(state.config.optim, gradient_checkpointing=True)
            state.config = replace(state.config, optim=optim)
            checkpoint_activations_(state.student.model)
        if not is_shared:
            without = lambda policy, batch, features: completion_hidden(policy, batch)  # noqa: E731
            monkeypatch.setattr(step, "completion_hidden", without)
            monkeypatch.setattr(targets, "completion_hidden", without)
        updates.append(update(state))
    (shared, grads), (apart, apart_grads) = updates
    assert shared.metrics["loss"] == pytest.approx(apart.metrics["loss"], rel=1e-10)
    assert grads.keys() == apart_grads.keys()
    assert any("visual" in key and grad.abs().max() > 0 for key, grad in grads.items())
    for key, grad in apart_grads.items():
        # The vision tower's rotary embedding rounds to float32, whatever the model's type.
        assert (grads[key] - grad).norm() <= 1e-5 * grad.norm(), key


def test_each_image_goes_once_through_each_tower_of_a_step():
    state = make_state("dopd", micro=1, score=2)
    seen = towers(state)
    train_step(state, [encode_sample(state, sample) for sample in rows()], Clock())
    passes = {name: {False: 0, True: 0} for name in seen}
    for name, calls in seen.items():
        for count, has_grad in calls:
            passes[name][has_grad] += count
    # The live self-target sees the drawn-on image besides the two that the rollouts showed.
    assert passes["student"] == {False: 3, True: 2}
    assert passes["teacher"] == {False: 3, True: 0}


def test_a_frozen_tower_has_no_pass_with_gradient():
    state = make_state("dopd", micro=1)
    state.student.backbone.get_encoder(modality="image").requires_grad_(False)
    seen = towers(state)
    _, grads = update(state)
    assert not any(has_grad for _, has_grad in seen["student"])
    assert grads and not any("visual" in name for name in grads)


def test_features_of_equal_images_are_equal_and_of_others_not():
    state = make_state("opd")
    prompts = [encode_sample(state, sample).prompts["plain"] for sample in rows()]
    with torch.no_grad():
        output = StepFeatures().of(state.student, prompts)
        direct = state.student.backbone.get_image_features(
            **image_inputs(state.student, prompts, None)
        )
    assert len(output.pooler_output) == len(direct.pooler_output) == 5
    for place, pooled in enumerate(direct.pooler_output):
        torch.testing.assert_close(output.pooler_output[place], pooled)
        for ours, theirs in zip(output.deepstack_features, direct.deepstack_features, strict=True):
            torch.testing.assert_close(ours[place], theirs[place])
    assert output.pooler_output[0] is output.pooler_output[1] is output.pooler_output[3]


def test_the_image_processor_sees_each_image_once_and_returns_what_it_would_alone(monkeypatch):
    state, taken = make_state("opd"), []
    kind = type(state.student.processor.image_processor)
    call = kind.__call__
    monkeypatch.setattr(
        kind, "__call__",
        lambda self, images, *args, **options: (
            taken.extend(images), call(self, images, *args, **options))[1],
    )  # fmt: skip
    encoded = [encode_sample(state, sample) for sample in rows()]
    assert len(taken) == 1 + 2 + 3
    monkeypatch.undo()
    assert (
        encoded[0].prompts["plain"].image_tensors == encoded[0].prompts["privileged"].image_tensors
    )
    for sample, both in zip(rows(), encoded, strict=True):
        for view in ("plain", "privileged"):
            prompt = both.prompts[view]
            whole = state.student.processor(
                text=[prompt.text], images=list(sample.view(view).images), return_tensors="pt"
            )
            assert whole["input_ids"][0].tolist() == prompt.input_ids.tolist()
            for name, value in prompt.image_tensors.items():
                assert torch.equal(value, whole[name])


def test_keys_tell_pixels_size_and_mode_apart():
    key = CachedImageProcessor(None).key
    flat = Image.new("L", (4, 6), 7)
    others = [Image.new("L", (6, 4), 7), Image.new("L", (4, 6), 8), Image.new("P", (4, 6), 7)]
    assert key(flat) == key(flat.copy())
    assert len({key(flat), *map(key, others)}) == 4


def test_a_processor_that_pads_by_company_is_called_as_ever():
    calls = []

    class Padding:
        def __call__(self, images, **options):
            calls.append(len(images))
            return {
                "pixel_values": torch.ones(len(images), 3),
                "pixel_mask": torch.ones(len(images)),
            }

    remembering = CachedImageProcessor(Padding())
    for _ in range(2):
        assert remembering([FIRST, SECOND])["pixel_values"].shape == (2, 3)
    assert remembering([FIRST, FIRST])["pixel_values"].shape == (2, 3)
    assert calls[-1] == 2


def test_prompts_encoded_alone_have_the_keys_of_those_encoded_together():
    state, sample = make_state("opd"), rows()[2]
    pair = build_prompts(sample)
    alone = encode_prompt(state.student.encoder, pair.plain)
    assert alone.image_keys == encode_sample(state, sample).prompts["plain"].image_keys
    assert len(alone.image_keys) == 3 and len(set(alone.image_keys)) == 2
