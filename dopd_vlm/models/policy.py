"""Load the student, the frozen teacher and their processors; check that their vocabularies agree."""

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dopd_vlm.config import LoraConfig, ModelConfig
from dopd_vlm.models.encoder import Encoder
from dopd_vlm.models.families import Family, family_of, is_visual
from dopd_vlm.routed_loss import Head

ADAPTER_FILE = "adapter_config.json"
"""What tells a folder of LoRA adapters from one of whole weights."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model with the processor that makes its inputs."""

    model: PreTrainedModel
    processor: Any
    """A ProcessorMixin for vision-language models, the tokenizer itself for text-only ones; None where only shapes
    are asked for."""
    path: str
    """Where it was loaded from."""

    @property
    def family(self) -> Family:
        """What is to be known of the model's family."""
        return family_of(self.model.config)

    @property
    def encoder(self) -> Encoder:
        """What makes its prompts, without the weights."""
        config = self.model.config
        return Encoder(
            processor=self.processor,
            family=self.family,
            image_token_id=config.image_token_id if is_visual(config) else None,
            path=self.path,
            context=config.get_text_config().to_dict().get("max_position_embeddings"),
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        return self.encoder.tokenizer

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.device

    @property
    def head(self) -> nn.Module:
        """The output projection, [V, H] weight and perhaps a bias."""
        return self.model.get_output_embeddings()  # type: ignore[return-value]

    @property
    def backbone(self) -> nn.Module:
        """The model without its head: input ids and pixels -> hidden states."""
        get_base = getattr(self.model, "get_base_model", None)  # a PEFT wrapper
        return (get_base() if get_base else self.model).base_model

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        eos = self.model.generation_config.eos_token_id  # type: ignore[union-attr]
        eos = self.tokenizer.eos_token_id if eos is None else eos
        ids = eos if isinstance(eos, list | tuple) else [eos]
        return tuple(int(i) for i in ids)  # type: ignore[arg-type]

    @property
    def pad_id(self) -> int:
        """Fills batches; it never decides what is masked."""
        if self.processor is None:
            return 0
        pad = self.tokenizer.pad_token_id
        return self.eos_ids[0] if pad is None else int(pad)  # type: ignore[arg-type]

    @property
    def visual_ids(self) -> tuple[int, ...]:
        """Ids of the family's image markers; in a completion the next forward would look for their pixels."""
        config = self.model.config
        ids = (getattr(config, name, None) for name in self.family.marker_ids)
        return tuple(sorted({int(i) for i in ids if i is not None}))


def load_policy(
    config: ModelConfig, *, device: str | torch.device, trainable: bool, like: Policy | None = None
) -> Policy:
    """The model in eval mode on `device`, safetensors only; frozen unless `trainable`.

    `like` lends its processor and dtype: a second copy of a model needs the same of both.
    Raises ValueError when the folder is absent, holds no safetensors, or has no chat template.
    """
    path = existing(config.path)
    if (Path(path) / ADAPTER_FILE).is_file():
        return _load_adapted(config, Path(path), device=device, trainable=trainable)
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    try:
        architecture = AutoConfig.from_pretrained(path, **options)
        family_of(architecture)
        processor = like.processor if like else AutoProcessor.from_pretrained(path, **options)
        auto = auto_class(architecture)
        model = auto.from_pretrained(
            path,
            dtype=like.model.dtype if like else model_dtype(config, device, trainable),
            attn_implementation=config.attention,
            use_safetensors=True,
            quantization_config=_quantization(config, trainable),
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load model {config.path!r}: {error}") from error
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"model {config.path!r} has no chat template; use an instruction-tuned checkpoint "
            "or put a chat_template.jinja into its folder"
        )
    if config.load_in == "full":
        model.to(torch.device(device))  # type: ignore[arg-type]
    model.requires_grad_(trainable)
    if config.eos_token_ids is not None:
        model.generation_config.eos_token_id = list(config.eos_token_ids)
    return Policy(model=disable_dropout_(model).eval(), processor=processor, path=config.path)


def _load_adapted(
    config: ModelConfig, folder: Path, *, device: str | torch.device, trainable: bool
) -> Policy:
    """The base model that an adapter folder names, with the adapters merged into its weights (extra `peft`)."""
    from peft import PeftModel  # type: ignore[import-not-found]

    base = json.loads((folder / ADAPTER_FILE).read_text())["base_model_name_or_path"]
    try:
        policy = load_policy(replace(config, path=base), device=device, trainable=False)
    except ValueError as error:
        raise ValueError(f"{config.path!r} holds adapters of {base!r}: {error}") from error
    merged = PeftModel.from_pretrained(policy.model, str(folder)).merge_and_unload()
    merged.requires_grad_(trainable)
    return replace(policy, model=merged.eval(), path=config.path)


def auto_class(config: PretrainedConfig) -> Any:
    """The transformers class that loads the architecture."""
    return AutoModelForImageTextToText if is_visual(config) else AutoModelForCausalLM


def model_dtype(config: ModelConfig, device: str | torch.device, trainable: bool) -> torch.dtype:
    """`auto` keeps trained weights in fp32: at lr 5e-6 an update is below bfloat16's resolution."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return torch.bfloat16 if has_bfloat16(device) and not trainable else torch.float32


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware; CPUs are slower in it and answer no."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()


def disable_dropout_(model: PreTrainedModel) -> PreTrainedModel:
    """Dropout off for good: rollout, targets and loss must see one and the same network."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model


def checkpoint_activations_(model: PreTrainedModel) -> None:
    """Layers keep their inputs alone; the backward computes the rest again."""
    # transformers 5.24 gave it another name and warns of the older one.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(model, name) for name in names if hasattr(model, name))
    enable({"use_reentrant": False})


def add_lora(policy: Policy, config: LoraConfig, checkpoint: Path | None = None) -> Policy:
    """The same policy with trainable adapters on a frozen model, fresh or from a checkpoint (extra `peft`)."""
    from peft import LoraConfig as PeftConfig  # type: ignore[import-not-found]
    from peft import PeftModel, get_peft_model  # type: ignore[import-not-found]

    if checkpoint is not None:
        adapted = PeftModel.from_pretrained(policy.model, str(checkpoint), is_trainable=True)
        return replace(policy, model=adapted)  # type: ignore[arg-type]
    adapters = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=config.target_modules
    )
    return replace(policy, model=get_peft_model(policy.model, adapters))  # type: ignore[arg-type]


def check_vocabularies(student: Policy, teacher: Policy) -> None:
    """Raise ValueError unless both tokenizers map the same tokens to the same ids.

    Head widths may differ by padding. Warns where the teacher ends its turns with tokens that the student does
    not stop at (a Base student of an Instruct teacher): completions would run on after them.
    """
    missing = sorted(set(teacher.eos_ids) - set(student.eos_ids))
    if missing:
        names = teacher.tokenizer.convert_ids_to_tokens(missing)
        every = sorted({*student.eos_ids, *missing})
        warnings.warn(
            f"the teacher {teacher.path!r} ends completions with {', '.join(names)}, where the student "
            f"{student.path!r} goes on: set student.eos_token_ids={every}",
            stacklevel=2,
        )
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours == theirs:
        return
    differing = sorted(
        token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
    )
    examples = ", ".join(f"{t!r}: {ours.get(t)} / {theirs.get(t)}" for t in differing[:5])
    raise ValueError(
        f"student {student.path!r} and teacher {teacher.path!r} map {len(differing)} tokens to different ids "
        f"(student / teacher: {examples}); token-level distillation needs one vocabulary: "
        "take a teacher of the same family"
    )


def output_head(policy: Policy) -> Head:
    """The policy's head with the logit scale and soft-cap that its forward applies."""
    text = policy.model.config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(text, "logits_scaling", None) or 1.0  # Granite
    return Head(
        weight=policy.head.weight,  # type: ignore[arg-type]
        bias=getattr(policy.head, "bias", None),
        logit_scale=scale,
        softcap=getattr(text, "final_logit_softcapping", None),  # Gemma
    )


def existing(path: str) -> str:
    """The folder of a local model, or the hub id as it is. Raises ValueError for a folder that is absent."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    folder = Path(path).expanduser()
    if looks_local and not folder.is_dir():
        raise ValueError(f"model folder {path!r} does not exist")
    return str(folder) if folder.is_dir() else path


def _quantization(config: ModelConfig, trainable: bool) -> Any:
    if config.load_in == "full":
        return None
    if trainable:
        raise ValueError(f"student.load_in={config.load_in!r}: trained weights must be full")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=config.load_in == "4bit",
        load_in_8bit=config.load_in == "8bit",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
