"""The student as a Hugging Face folder, for engines that load from one."""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dopd_vlm.models.policy import Policy


def write_model(policy: Policy, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """config, tokenizer or processor, and the weights, each under its name in the checkpoint."""
    model = policy.model
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    rope = config.get_text_config().to_dict().get("rope_parameters") or {}
    if config.model_type == "qwen3_vl" and "mrope_section" in rope:
        # Qwen3-VL always interleaves; transformers does not ask, vLLM does.
        config.get_text_config().rope_parameters = {**rope, "mrope_interleaved": True}
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)  # type: ignore[union-attr]
    policy.processor.save_pretrained(folder)
    write_weights(weights, folder)


def write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """One safetensors file of all tensors, copied to the CPU one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def sampling_dtype(policy: Policy, autocast: object) -> torch.dtype:
    """The type in which the trainer's forwards compute: autocast's where it is on, else the weights'."""
    kind = policy.device.type
    with autocast():  # type: ignore[operator]
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
    return policy.model.dtype
