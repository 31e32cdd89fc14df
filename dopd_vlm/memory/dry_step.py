"""One optimizer step of a recipe on shapes: the step's own code, its bytes counted phase by phase.

Batches are filled with the longest prompt and completions of full length.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoProcessor, PretrainedConfig

from dopd_vlm.config import LoraConfig, ModelConfig, RunConfig
from dopd_vlm.memory.known_models import known_model
from dopd_vlm.memory.meta_tensors import Autocast, DryCalls, LiveBytes
from dopd_vlm.methods import Method
from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.forward import can_share, plain_layers, prefill
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.models.policy import (
    Policy,
    add_lora,
    auto_class,
    checkpoint_activations_,
    existing,
    model_dtype,
    output_head,
)
from dopd_vlm.rollout.own import ROOM, OwnEngine
from dopd_vlm.routers import Routing
from dopd_vlm.routers.router import everywhere
from dopd_vlm.routing import Counts, Thresholds
from dopd_vlm.training.completions import sample_completions
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import micro_batch_loss, recomputing
from dopd_vlm.training.targets import MicroBatch, score_targets
from dopd_vlm.types import Rollout, Sample, View, ViewName

DRAWN = 2
"""Tokens that the dry rollout draws; what the others add to keys and values is computed."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """What lives at the highest moment of a phase, weights and optimizer aside."""

    kept: float = 0.0
    """Of earlier phases: the targets' hidden states and scores, features of images, gradients."""
    activations: float = 0.0
    """Of the models' forwards and backwards, caches of keys and values, temporaries."""
    chunk: float = 0.0
    """Logits, a chunk of tokens at a time."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.kept + self.activations + self.chunk


def dry_state(config: RunConfig, method: Method, device: str) -> TrainState:
    """Models without data, and an optimizer with its moments."""
    student = _policy(config, config.student, device, is_student=True)
    self_target = student if method.needs_self_target else None
    if self_target is not None and method.self_target != "live":
        # Weights of the student's own type, as `load_policy(like=student)` has them.
        self_target = _policy(config, config.student, device, is_student=True)
        self_target.model.requires_grad_(False)
    base = None
    if method.needs_base:
        base = _policy(config, config.student, device, is_student=True)
        base.model.requires_grad_(False)
    teacher = _policy(config, config.teacher, device) if method.needs_teacher else None
    if config.optim.gradient_checkpointing:
        checkpoint_activations_(student.model)
    trained = [p for p in student.model.parameters() if p.requires_grad]
    widths = [len(output_head(p).weight) for p in (student, teacher) if p is not None]
    accelerator = _accelerator(config, device)
    batch_size = config.rollout.batch_size
    return TrainState(
        config=config,
        accelerator=accelerator,
        student=student,
        teacher=teacher,
        self_target=self_target,
        method=method,
        optimizer=torch.optim.AdamW(trained, foreach=device == "cuda"),
        scheduler=None,  # type: ignore[arg-type]
        engine=OwnEngine(student, batch_size=batch_size, autocast=accelerator.autocast),
        vocab_size=min(widths),
        base=base,
    )


def _policy(
    config: RunConfig, model: ModelConfig, device: str, *, is_student: bool = False
) -> Policy:
    if device == "cuda" and model.dtype == "auto":
        model = replace(model, dtype="float32" if is_student else "bfloat16")
    policy = empty_policy(
        model,
        device="cpu",
        trainable=is_student and not config.lora.rank,
        lora=config.lora if is_student else None,
        known=known_model(model.path),
    )
    # An id that made-up draws never hit.
    policy.model.generation_config.eos_token_id = 1  # type: ignore[union-attr]
    return policy


def empty_policy(
    config: ModelConfig,
    *,
    device: str | torch.device,
    trainable: bool,
    lora: LoraConfig | None = None,
    known: tuple[PretrainedConfig, Any] | None = None,
) -> Policy:
    """The model's architecture on the meta device: shapes and dtypes as on `device`, no data.

    Reads config and processor alone, or takes those of `known`. Raises ValueError where there are none.
    """
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    architecture, processor = known or _described(config, options)
    auto = auto_class(architecture)
    with torch.device("meta"):
        model = auto.from_config(
            architecture,
            dtype=model_dtype(config, device, trainable),
            # Kernels that are not installed here keep what torch's own fused one keeps.
            attn_implementation="eager" if config.attention == "eager" else "sdpa",
            **options,
        )
        model.requires_grad_(trainable)
        policy = Policy(model=model.eval(), processor=processor, path=config.path)
        return add_lora(policy, lora) if lora is not None and lora.rank else policy


def _described(config: ModelConfig, options: dict[str, Any]) -> tuple[PretrainedConfig, Any]:
    path = existing(config.path)
    try:
        return (
            AutoConfig.from_pretrained(path, **options),
            AutoProcessor.from_pretrained(path, **options),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"cannot read config and processor of model {config.path!r}: {error}. A folder with the "
            "small files of the checkpoint (config.json, tokenizer, processor; no weights) is enough"
        ) from error


def _accelerator(config: RunConfig, device: str) -> Any:
    use_bfloat16 = config.precision == "bfloat16" or (
        config.precision == "auto" and device == "cuda"
    )

    def autocast(*, keeps_weights: bool = True) -> AbstractContextManager[Any]:
        return Autocast(device, keeps_weights=keeps_weights) if use_bfloat16 else nullcontext()

    return SimpleNamespace(
        autocast=autocast,
        device=torch.device(device),
        mixed_precision="bf16" if use_bfloat16 else "no",
        num_processes=1,
        process_index=0,
    )


@contextmanager
def dry_run(device: str, vocab_size: int) -> Iterator[LiveBytes]:
    """Code inside sees tensors on `device` that have sizes only; yields what counts them."""
    with warnings.catch_warnings(), DryCalls(device), LiveBytes(vocab_size) as live:
        warnings.simplefilter("ignore")  # of a missing GPU, of made-up scores
        yield live


def filled(prompts: Mapping[ViewName, Sequence[EncodedPrompt]], count: int) -> list[EncodedSample]:
    """`count` rows of the longest prompt in each view, each with images of its own."""
    longest: dict[ViewName, EncodedPrompt] = {
        view: max(of, key=lambda p: len(p.input_ids)) for view, of in prompts.items()
    }
    blank = Sample(uid="", question="", answer="", plain=View(), privileged=View())
    return [
        EncodedSample(
            sample=replace(blank, uid=str(row)),
            prompts={view: _copy(prompt, row) for view, prompt in longest.items()},
        )
        for row in range(count)
    ]


def _copy(prompt: EncodedPrompt, row: int) -> EncodedPrompt:
    tensors = {
        name: value.to("meta") if value.is_floating_point() else value
        for name, value in prompt.image_tensors.items()
    }
    keys = tuple(f"{key}/{row}" for key in prompt.image_keys)
    return replace(prompt, image_tensors=tensors, image_keys=keys)


def dry_rollout(
    state: TrainState, samples: Sequence[EncodedSample], features: StepFeatures, live: LiveBytes
) -> Bytes:
    """Prefill and the first tokens of one batch, and what the cache is in the end."""
    rollout = state.config.rollout
    short = replace(rollout, max_completion_length=min(DRAWN, rollout.max_completion_length))
    state = replace(state, config=replace(state.config, rollout=short))
    count = rollout.num_generations
    prompts = [sample.prompts["plain"] for sample in samples]
    sample_completions(state, prompts, short.sampling(), features)
    peak, chunk = live.take_peak()
    room = rollout.max_completion_length
    if can_share(state.student):
        room = math.ceil(room / min(ROOM, room)) * min(ROOM, room)
    grown = (room - short.max_completion_length) * len(samples) * count
    activations = peak - chunk + grown * _cache_bytes(state.student)
    return Bytes(activations=activations, chunk=chunk)


@torch.no_grad()
def _cache_bytes(policy: Policy) -> int:
    """Keys and values of one token."""
    ids = torch.zeros(1, 1, dtype=torch.int64)
    prefix = prefill(policy, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    layers = plain_layers(prefix.cache)
    tensors = [t for layer in layers for t in (layer.keys, layer.values) if t is not None]
    return sum(t.numel() * t.itemsize for t in tensors)


def dry_step(state: TrainState, samples: Sequence[EncodedSample], live: LiveBytes) -> dict:
    """{phase: Bytes} of a step on these rows."""
    features = StepFeatures()
    phases = {"rollout": dry_rollout(state, samples, features, live)}
    live.take_peak()
    rollouts = _full_rollouts(state, samples)
    micro_batches = score_targets(state, samples, rollouts, features)
    features.keep_only(state.student)
    # Scoring is highest at its end, when nearly all that it leaves is there.
    phases["score"] = _phase(live, kept=live.now)
    kept = live.now
    losses = _losses(state, micro_batches, features)
    phases["loss"] = _phase(live, kept=kept)
    before = live.now
    state.optimizer.step()  # makes the moments
    moments = live.now - before
    live.take_peak()
    state.optimizer.step()
    peak, _ = live.take_peak()
    phases["step"] = Bytes(kept=before, activations=peak - before - moments)
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer.state.clear()
    del losses
    return phases


def _phase(live: LiveBytes, *, kept: int) -> Bytes:
    peak, chunk = live.take_peak()
    return Bytes(kept=kept, activations=max(0, peak - chunk - kept), chunk=chunk)


def _full_rollouts(state: TrainState, samples: Sequence[EncodedSample]) -> list[Rollout]:
    rollout = state.config.rollout
    ids = torch.zeros(rollout.max_completion_length, dtype=torch.int64)
    longest = Rollout(uid="", completion_ids=ids, sampler_logp=ids.float(), finish_reason="length")
    return [longest] * (len(samples) * rollout.num_generations)


def _losses(
    state: TrainState, micro_batches: Sequence[MicroBatch], features: StepFeatures
) -> list[Any]:
    """Forward and backward of every micro-batch, as `distil_step` has them."""
    limits = Thresholds(gap=1.0, q_self=0.0, q_teacher=0.0)
    counts = Counts(num_sequences=1, num_tokens=1)
    losses = []
    for micro in micro_batches:
        if not state.method.by_gap:  # shapes have no scores to route by: every token is trained
            micro = replace(micro, routing=Routing(route=everywhere(micro.batch.mask)))
        output = micro_batch_loss(state, micro, limits, counts, features)
        with recomputing(state), _recast(state):
            # Not output.loss.backward(): the modes of the dry run know this one.
            torch.autograd.backward(output.loss)
        losses.append(output)
    with recomputing(state), _recast(state):
        at_once = state.config.optim.micro_batch_size
        features.backward(state.student, at_once, lambda: state.accelerator.autocast())
    return losses


def _recast(state: TrainState) -> AbstractContextManager[Any]:
    """torch casts in a recomputed forward as in the first, and lets go of each layer's weights."""
    if not state.config.optim.gradient_checkpointing:
        return nullcontext()
    return state.accelerator.autocast(keeps_weights=False)  # type: ignore[call-arg]


def weight_bytes(state: TrainState) -> int:
    """Parameters and buffers of all models; linear layers of a quantised teacher take less."""
    policies = {
        id(p.model): p for p in (state.student, state.teacher, state.self_target, state.base) if p
    }
    total = sum(
        tensor.numel() * tensor.itemsize
        for policy in policies.values()
        for tensor in (*policy.model.parameters(), *policy.model.buffers())
    )
    load_in = state.config.teacher.load_in
    if state.teacher is not None and load_in in QUANTISED_BYTES:
        for module in state.teacher.model.modules():
            if isinstance(module, nn.Linear) and module is not state.teacher.head:
                saved = module.weight.itemsize - QUANTISED_BYTES[load_in]
                total -= int(module.weight.numel() * saved)
    return total


QUANTISED_BYTES = {"4bit": 0.56, "8bit": 1.0}
"""Bytes a weight of a linear layer, block scales included."""
