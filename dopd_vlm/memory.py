"""Peak memory of a recipe's steps before they run: from the models' configs, no weights loaded.

The models live on torch's meta device, where tensors have sizes and no data. The step's own forwards
and backwards run there, and every storage is counted from its birth to its death, so that what is
predicted is what autograd keeps for this architecture, these lengths and this batch.

Shapes: U prompts of P tokens, B completions of T tokens, V vocabulary, H hidden size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dopd_vlm.config import RunConfig
from dopd_vlm.encode import EncodedPrompt
from dopd_vlm.heads import default_chunk_size
from dopd_vlm.memory_probe import PROBE, LiveBytes
from dopd_vlm.methods import Method
from dopd_vlm.models import Policy, empty_policy, output_head
from dopd_vlm.prefill import can_share, extend, prefill, select, with_room
from dopd_vlm.types import ViewName

QUANTISED_BYTES = {"4bit": 0.56, "8bit": 1.0}
"""Bytes a weight of a linear layer, block scales included."""
SAMPLER_BYTES = 20
"""Bytes of [B, V] at one draw: logits, log-probs, probabilities in float32, their sum in float64."""
LOSS_CHUNKS = 3
"""Buffers of a chunk's logits alive at once: student, target, gradient."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Bytes of one phase of a step, by what holds them."""

    weights: int
    optimizer: int
    gradients: int
    work: int
    """Activations, caches, hidden states of the targets and chunks of logits, at their highest."""

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.weights + self.optimizer + self.gradients + self.work


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """What a recipe needs per phase, per process, with completions of full length."""

    phases: Mapping[str, Phase]
    process: int
    """Bytes of the Python process before any model; 0 for a GPU."""

    @property
    def peak(self) -> int:
        """Bytes at the highest phase, the process included."""
        return self.process + max(phase.total for phase in self.phases.values())


def predict(
    config: RunConfig,
    method: Method,
    prompts: Mapping[ViewName, Sequence[EncodedPrompt]],
    *,
    num_processes: int = 1,
    device: str = "cpu",
) -> MemoryReport:
    """Peak bytes of one process's steps.

    Args:
        config: the recipe, with model paths that hold at least config and tokenizer.
        method: its method.
        prompts: encoded prompts of some rows, one entry a row in both views. The longest stands for
            its batch.
        num_processes: that share the batch.
        device: cpu or cuda; decides dtypes and the size of the loss's chunks.
    """
    sizes = Sizes.of(config, method, prompts, num_processes)
    student = _on_meta(config, "student", device)
    teacher = _on_meta(config, "teacher", device) if method.needs_teacher else None
    own = student if method.needs_self_target else None
    targets: list[tuple[Policy | None, ViewName]] = [
        (teacher, method.teacher_view),
        (own, method.self_target_view),
    ]
    used: list[tuple[Policy, ViewName]] = [(p, view) for p, view in targets if p is not None]
    trained = [p for p in student.model.parameters() if p.requires_grad]
    copies = [student, teacher, own if method.self_target != "live" else None]
    fixed = {
        "weights": sum(_weight_bytes(policy, config) for policy in copies if policy is not None),
        "optimizer": 2 * _bytes(trained),  # AdamW's two moments
    }
    kept = sum(sizes.target_bytes(policy) for policy, _ in used)
    score = max((_peak(_score(policy, view, sizes)) for policy, view in used), default=0)
    score += _chunk_bytes(student, sizes.score_batch, sizes, device)
    loss = _train_peak(student, method.student_view, sizes, trained)
    loss += _loss_bytes(student, sizes, device)
    gradients = _bytes(trained)
    step = gradients if device == "cuda" else 0  # AdamW's foreach temporaries
    return MemoryReport(
        phases={
            "rollout": Phase(**fixed, gradients=0, work=_rollout_peak(student, sizes)),
            "score": Phase(**fixed, gradients=0, work=kept + score),
            "loss": Phase(**fixed, gradients=gradients, work=kept + loss),
            "step": Phase(**fixed, gradients=gradients, work=kept + step),
        },
        process=0 if device == "cuda" else resident_bytes(),
    )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers and lengths of a process's step."""

    num_prompts: int
    num_generations: int
    num_tokens: int
    """Longest completion."""
    top_k: int
    rollout_batch: int
    """Prompts."""
    score_batch: int
    """Sequences."""
    micro_batch: int
    """Sequences."""
    recompute: bool
    """Gradient checkpointing."""
    longest: Mapping[ViewName, EncodedPrompt]

    @staticmethod
    def of(
        config: RunConfig,
        method: Method,
        prompts: Mapping[ViewName, Sequence[EncodedPrompt]],
        num_processes: int,
    ) -> "Sizes":
        """Those of a recipe; raises ValueError without a prompt."""
        if not all(prompts.values()):
            raise ValueError("a memory report needs at least one encoded prompt in each view")
        num_prompts = -(-config.optim.batch_size // num_processes)
        sequences = num_prompts * config.rollout.num_generations
        return Sizes(
            num_prompts=num_prompts,
            num_generations=config.rollout.num_generations,
            num_tokens=config.rollout.max_completion_length,
            top_k=max(method.teacher_top_k or 0, method.self_target_top_k or 0),
            rollout_batch=min(config.rollout.batch_size, num_prompts),
            score_batch=min(config.optim.score_batch_size, sequences),
            micro_batch=min(config.optim.micro_batch_size, sequences),
            recompute=config.optim.gradient_checkpointing,
            longest={v: max(p, key=lambda e: len(e.input_ids)) for v, p in prompts.items()},
        )

    def target_bytes(self, policy: Policy) -> int:
        """Hidden states [B, T, H] and top-K ids and log-probs of every token of the batch."""
        tokens = self.num_prompts * self.num_generations * self.num_tokens
        weight = output_head(policy).weight
        return tokens * (weight.shape[1] * weight.itemsize + self.top_k * 8)


def _on_meta(config: RunConfig, name: str, device: str) -> Policy:
    model = config.student if name == "student" else config.teacher
    lora = config.lora if name == "student" else None
    policy = empty_policy(
        model, device=device, trainable=name == "student", attention=PROBE, lora=lora
    )
    if name == "student" and config.optim.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _weight_bytes(policy: Policy, config: RunConfig) -> int:
    """Parameters and buffers; linear layers of a quantised model take less."""
    load_in = config.teacher.load_in if not policy.head.weight.requires_grad else "full"
    total = _bytes([*policy.model.parameters(), *policy.model.buffers()])
    if load_in in QUANTISED_BYTES:
        for module in policy.model.modules():
            if isinstance(module, nn.Linear) and module is not policy.head:
                size = module.weight.itemsize
                total -= int(module.weight.numel() * (size - QUANTISED_BYTES[load_in]))
    return total


def _chunk_bytes(policy: Policy, sequences: int, sizes: Sizes, device: str) -> int:
    """One buffer of logits of that many sequences."""
    weight = output_head(policy).weight
    rows = default_chunk_size(len(weight), torch.float32, torch.device(device))
    return min(rows, sequences * sizes.num_tokens) * len(weight) * 4


def _loss_bytes(policy: Policy, sizes: Sizes, device: str) -> int:
    """The routed loss's own: chunks of logits, and the head's gradient beside what autograd adds it to."""
    weight = output_head(policy).weight
    chunks = LOSS_CHUNKS * _chunk_bytes(policy, sizes.micro_batch, sizes, device)
    return chunks + (_bytes([weight]) if weight.requires_grad else 0)


def _peak(call: Callable[[], Any]) -> int:
    """The most bytes that the call's own tensors take at once."""
    with LiveBytes() as live:
        result = call()
        del result
    return live.peak


def _prompts(policy: Policy, prompt: EncodedPrompt, count: int) -> dict[str, Tensor]:
    """`count` times the prompt's tokens; its pictures are counted by `_pictures`."""
    ids = torch.zeros(count, len(prompt.input_ids), dtype=torch.int64, device="meta")
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pictures(policy: Policy, prompt: EncodedPrompt, count: int) -> Any:
    """Features of the pictures of `count` such prompts; None without pictures."""
    if not prompt.pictures:
        return None
    copies = {
        name: torch.cat([value] * count) if name.endswith("thw") else _like(value, count)
        for name, value in prompt.pictures.items()
    }
    return policy.backbone.get_image_features(**copies)  # type: ignore[operator]


def _like(value: Tensor, count: int) -> Tensor:
    return torch.empty(len(value) * count, *value.shape[1:], dtype=value.dtype, device="meta")


def _completions(
    policy: Policy, prompt: EncodedPrompt, count: int, share: int, num_tokens: int
) -> Tensor:
    """Hidden states of `count` completions, `share` of them to a prompt, as scores.py has them."""
    num_prompts = -(-count // share)
    owner = torch.arange(count, device="meta")
    prefix = select(prefill(policy, _prompts(policy, prompt, num_prompts)), owner)
    ids = torch.zeros(count, max(1, num_tokens - 1), dtype=torch.int64, device="meta")
    return extend(policy, prefix, ids, torch.ones_like(ids))[0]


def _score(policy: Policy, view: ViewName, sizes: Sizes) -> Callable[[], Any]:
    prompt = sizes.longest[view]
    share = sizes.num_generations if can_share(policy) else 1

    @torch.no_grad()
    def call() -> Any:
        features = _pictures(policy, prompt, -(-sizes.score_batch // share))
        hidden = _completions(policy, prompt, sizes.score_batch, share, sizes.num_tokens)
        return features, hidden

    return call


def _rollout_peak(policy: Policy, sizes: Sizes) -> int:
    prompt, share = sizes.longest["plain"], can_share(policy)
    sequences = sizes.rollout_batch * sizes.num_generations

    @torch.no_grad()
    def call() -> Any:
        count = sizes.rollout_batch if share else sequences
        _pictures(policy, prompt, count)
        prefix = prefill(policy, _prompts(policy, prompt, count))
        if share:
            rows = torch.arange(sequences, device="meta")
            prefix = with_room(prefix, rows, sizes.num_tokens)
        ids = torch.zeros(sequences, 1, dtype=torch.int64, device="meta")
        return extend(policy, prefix, ids, torch.ones_like(ids))

    weight = output_head(policy).weight
    return _peak(call) + sequences * len(weight) * SAMPLER_BYTES


def _train_peak(policy: Policy, view: ViewName, sizes: Sizes, trained: Sequence[Tensor]) -> int:
    """Bytes of activations at their highest, beside gradients that are there already."""
    prompt = sizes.longest[view]
    share = sizes.num_generations if can_share(policy) and not sizes.recompute else 1

    def call() -> None:
        features = _pictures(policy, prompt, -(-sizes.micro_batch // share))
        if sizes.recompute:
            hidden = _whole(policy, prompt, sizes)
        else:
            hidden = _completions(policy, prompt, sizes.micro_batch, share, sizes.num_tokens)
        outputs = [t for t in (hidden, *_tensors(features)) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])

    policy.model.train(sizes.recompute)
    with LiveBytes() as live:
        call()
        gradients = live.now
        live.peak = live.now
        call()  # every micro-batch but the first finds gradients there
    policy.model.eval()
    for parameter in trained:
        parameter.grad = None
    return live.peak - gradients


def _whole(policy: Policy, prompt: EncodedPrompt, sizes: Sizes) -> Tensor:
    ids = torch.zeros(
        sizes.micro_batch,
        len(prompt.input_ids) + sizes.num_tokens - 1,
        dtype=torch.int64,
        device="meta",
    )
    return policy.backbone(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    ).last_hidden_state


def _tensors(features: Any) -> list[Tensor]:
    if features is None:
        return []
    leaves = tree_leaves(dict(features) if hasattr(features, "items") else features)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def resident_bytes() -> int:
    """Memory of this process now."""
    return psutil.Process().memory_info().rss
