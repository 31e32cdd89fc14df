"""Random models of known shapes and prompts of drawn ids, for checks without weights and tokenizers."""

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModelForImageTextToText, Qwen3VLConfig, get_constant_schedule

from dopd_vlm.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.memory.known_models import IMAGE, VISION_END, VISION_START, known_model
from dopd_vlm.methods import configured_method
from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.policy import Policy
from dopd_vlm.rollout.engines import open_engine
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState
from dopd_vlm.types import Sample, View

STUDENT, TEACHER = "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"
TEACHER_LAYERS = 18
"""Half of the 8B model's, so that both fit one GPU with fp32 training."""
NEVER = 1
"""The id that ends a completion; among 151,936 drawn ids it is rare."""


def make_run(
    *,
    is_small: bool,
    device: str,
    has_teacher: bool = True,
    teacher_layers: int | None = TEACHER_LAYERS,
) -> tuple[TrainState, list[EncodedSample]]:
    """A state as `build_state` makes it, on random weights, and encoded samples with an image each."""
    prompts, generations, tokens = (2, 2, 4) if is_small else (8, 4, 256)
    config = RunConfig(
        student=ModelConfig(path=STUDENT), teacher=ModelConfig(path=TEACHER),
        data=DataConfig(train="drawn"), method=MethodConfig(name="dopd" if has_teacher else "opsd"),
        rollout=RolloutConfig(num_generations=generations, max_completion_length=tokens),
        optim=OptimConfig(batch_size=prompts, micro_batch_size=4, score_batch_size=8, learning_rate=1e-6),
    )  # fmt: skip
    student = random_policy(STUDENT, is_small, device, trainable=True)
    teacher = (
        random_policy(TEACHER, is_small, device, trainable=False, layers=teacher_layers)
        if has_teacher
        else None
    )
    parameters = list(student.model.parameters())
    on_gpu = device == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=on_gpu)
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu else "no")
    state = TrainState(
        config=config, accelerator=accelerator,
        engine=open_engine(config.rollout, student, accelerator.autocast),
        student=student, teacher=teacher, self_target=student, method=configured_method(config),
        optimizer=optimizer, scheduler=get_constant_schedule(optimizer),
        vocab_size=len(student.head.weight),  # type: ignore[arg-type]
    )  # fmt: skip
    return state, [draw_sample(place, is_small) for place in range(prompts)]


def random_policy(
    name: str, is_small: bool, device: str, *, trainable: bool, layers: int | None = None
) -> Policy:
    """The architecture with drawn weights: fp32 where it is trained, else bfloat16 on a GPU."""
    known = known_model(name)
    assert known is not None
    config = shrunk(known[0]) if is_small else known[0]
    if layers is not None and not is_small:
        config.text_config.num_hidden_layers = layers
    dtype = torch.float32 if trainable or device == "cpu" else torch.bfloat16
    torch.manual_seed(0 if trainable else 1)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.requires_grad_(trainable)
    model.generation_config.eos_token_id = NEVER
    return Policy(model=model.eval(), processor=None, path=name)


def shrunk(config: Any) -> Qwen3VLConfig:
    """The same architecture with a few small layers."""
    text = dict(
        vocab_size=IMAGE + 64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    )  # fmt: skip
    vision = dict(
        depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=16, spatial_merge_size=2,
        temporal_patch_size=2, out_hidden_size=32, num_position_embeddings=64, deepstack_visual_indexes=[0],
    )  # fmt: skip
    ids = {
        name: getattr(config, name)
        for name in (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        )
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def draw_sample(place: int, is_small: bool) -> EncodedSample:
    """Drawn ids around one image; the privileged view has some more of them."""
    side, words = (4, 12) if is_small else (32, 512)
    gen = torch.Generator().manual_seed(place)
    tokens = side * side // 4
    image = torch.tensor([VISION_START, *[IMAGE] * tokens, VISION_END])
    pixels = torch.randn(side * side, 3 * 2 * 16 * 16, generator=gen)
    tensors = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}

    def prompt(length: int) -> EncodedPrompt:
        text = torch.randint(10, 150_000, (length,), generator=gen)
        ids = torch.cat([image, text])
        return EncodedPrompt(
            uid=str(place), text="", input_ids=ids, image_tensors=tensors, image_keys=(f"image {place}",),
            token_inputs={"mm_token_type_ids": (ids == IMAGE).long()},
        )  # fmt: skip

    blank = Sample(uid=str(place), question="", answer="", plain=View(), privileged=View())
    return EncodedSample(
        sample=replace(blank),
        prompts={"plain": prompt(words), "privileged": prompt(words + words // 4)},
    )
