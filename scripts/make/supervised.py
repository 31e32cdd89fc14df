"""Supervised learning of tiny models on prompts and their answers."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopd_vlm.models.policy import Policy
from dopd_vlm.types import Message

PRINTED = 50
"""Steps between two lines about the loss."""


def answer_batch(
    policy: Policy, prompts: Sequence[list[Message]], answers: Sequence[str], images: Sequence[Any]
) -> dict[str, Tensor]:
    """Model inputs of prompts with their answers, labels on the answers and the end behind them.

    Args:
        images: all images of all prompts, in order.
    """
    texts, lengths = [], []
    for messages, answer in zip(prompts, answers, strict=True):
        prompt = policy.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        target = answer + policy.tokenizer.eos_token
        texts.append(prompt + target)
        lengths.append(len(policy.tokenizer(target).input_ids))
    return _with_labels(policy, texts, images, lengths)


def _with_labels(
    policy: Policy, texts: list[str], images: Sequence[Any], lengths: Sequence[int]
) -> dict[str, Tensor]:
    """Inputs padded on the right; labels are the last `lengths[i]` tokens, -100 elsewhere."""
    visual = {"images": list(images)} if images else {}
    inputs = policy.processor(
        text=texts, padding=True, padding_side="right", return_tensors="pt", **visual
    )
    place = torch.arange(inputs["input_ids"].shape[1])
    end = inputs["attention_mask"].sum(-1, keepdim=True)
    is_target = (place < end) & (place >= end - torch.tensor(lengths)[:, None])
    labels = torch.where(is_target, inputs["input_ids"], -100)
    inputs.pop("token_type_ids", None)
    return {**inputs, "labels": labels}


def fit_(
    policy: Policy,
    batches: Iterable[dict[str, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    warmup: int,
) -> None:
    """AdamW, linear warm-up, cosine to zero at `steps`, clipping at 1; ends with the batches."""
    model = policy.model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    begin = time.monotonic()
    for step, inputs in enumerate(batches, start=1):
        share = (1 + np.cos(np.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(step / warmup, share)
        model.train()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        if step % PRINTED == 0:
            spent, width = time.monotonic() - begin, inputs["labels"].shape[1]
            print(
                f"step {step} ({width} tokens): loss {loss.item():.4f}, {spent:.0f} s", flush=True
            )
    model.eval()
