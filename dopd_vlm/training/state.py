"""What a run carries from step to step, and a sample with its prompts encoded."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler

from dopd_vlm.config import RunConfig
from dopd_vlm.methods import Method
from dopd_vlm.models.encoder import EncodedPrompt, encode_prompt
from dopd_vlm.models.images import PictureProcessor
from dopd_vlm.models.policy import Policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import Sample, ViewName


@dataclass(kw_only=True)
class TrainState:
    """What training changes (`step`, weights, moments) and what it needs at hand."""

    config: RunConfig
    accelerator: Accelerator
    student: Policy
    teacher: Policy | None
    self_target: Policy | None
    """The student itself when live; a second model when ema or frozen; None where the method has none."""
    method: Method
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    vocab_size: int
    """Softmax width: the smaller of the two heads, which may be padded differently."""
    step: int = 0
    num_skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample with its two encoded prompts, shared by all its rollouts."""

    sample: Sample
    prompts: Mapping[ViewName, EncodedPrompt]


def encode_sample(state: TrainState, sample: Sample) -> EncodedSample:
    """Both views' prompts, encoded once. Raises ValueError naming the uid."""
    return EncodedSample(sample=sample, prompts=encoded_views(state.config, state.student, sample))


def encoded_views(
    config: RunConfig, student: Policy, sample: Sample
) -> dict[ViewName, EncodedPrompt]:
    """Both views' prompts of a sample. Raises ValueError naming the uid."""
    pair = build_prompts(sample, config.prompts)
    views: tuple[ViewName, ...] = ("plain", "privileged")
    # A tokenizer has no image processor; `encode_prompt` refuses pictures for it.
    is_visual = student.processor is not student.tokenizer
    pictures = PictureProcessor(student.processor.image_processor) if is_visual else None
    prompts: dict[ViewName, EncodedPrompt] = {
        view: encode_prompt(
            student,
            pair.view(view),
            uid=sample.uid,
            template_kwargs=config.chat.template_kwargs,
            pictures=pictures,
        )
        for view in views
    }
    longest, limit = max(len(p.input_ids) for p in prompts.values()), config.chat.max_prompt_length
    if limit is not None and longest > limit:
        raise ValueError(
            f"sample {sample.uid!r}: a prompt of {longest} tokens, chat.max_prompt_length is {limit}"
        )
    return prompts
