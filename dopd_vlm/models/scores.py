"""Hidden states at the positions that predict each completion token; only these ever reach a head.

Shapes: U prompts of P tokens, B completions of T tokens, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor

from dopd_vlm.models.encoder import Batch
from dopd_vlm.models.forward import completion_positions, extend, prefill, prompt_positions, select
from dopd_vlm.models.image_features import StepFeatures, picture_inputs
from dopd_vlm.models.policy import Policy


def completion_hidden(policy: Policy, batch: Batch, features: StepFeatures | None = None) -> Tensor:
    """[B, T, H] last hidden states that predict the completion; rows behind the mask are arbitrary.

    Calls the backbone, not the text decoder: on a vision-language model the latter would read image
    placeholders as words. Gradient as the caller's mode says. Where completions share prompts, each
    prompt is encoded once and the completions read its keys and values. `features` holds what the
    step's pictures became; without it, the pictures of this batch go through the tower.
    """
    batch = batch.to(policy.device)
    prompts = {**batch.prompts, **picture_inputs(policy, batch.sources, features)}
    is_shared = len(batch.sources) < len(batch.owner)
    return _shared(policy, batch, prompts) if is_shared else _whole(policy, batch, prompts)


def _shared(policy: Policy, batch: Batch, prompts: dict[str, Any]) -> Tensor:
    prefix = select(prefill(policy, prompts), batch.owner)
    first = prefix.last_hidden[:, None]
    if batch.mask.shape[1] == 1:
        return first
    # Nothing is predicted from the last token.
    rest, _ = extend(policy, prefix, batch.completion_ids[:, :-1], batch.mask[:, :-1])
    return torch.cat([first, rest], dim=1)


def _whole(policy: Policy, batch: Batch, prompts: dict[str, Any]) -> Tensor:
    order = batch.owner
    ids, mask = batch.completion_ids, batch.mask
    positions = prompt_positions(policy, prompts)
    inputs = {
        **prompts,
        "input_ids": torch.cat([prompts["input_ids"][order], ids[:, :-1]], 1),
        "attention_mask": torch.cat([prompts["attention_mask"][order], mask[:, :-1].long()], 1),
        "position_ids": torch.cat(
            [positions, completion_positions(positions, ids.shape[1] - 1)], -1
        ),
    }
    if "mm_token_type_ids" in prompts:
        types = prompts["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, ids.shape[1] - 1))
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state
    return hidden[:, prompts["input_ids"].shape[1] - 1 :]
