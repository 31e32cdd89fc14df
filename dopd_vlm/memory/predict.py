"""Peak memory of a recipe's steps before they run: from the models' configs, no weights loaded.

`dry_step` runs a step on shapes. Where the batch is large it runs two small ones: what lives at the
highest moment of a phase is a constant and an equal part for every prompt of the batch.

Why this is not torch's: `torch.distributed._tools.MemTracker` refuses a module that is called twice in a
step, as the student is, once in each view; and under `FakeTensorMode` the step stops where it looks at a
mask (`nonzero` has a dynamic shape). Here ids and masks stay real, and floats alone have no data.
A closed formula (weights, moments, gradients, ten hidden and four intermediate rows a token and layer) was
27% short of what a micro batch of 256 prompts held beside the process, where this one was 2% short
(EXPERIMENTS.md), and would need terms for every family, tower, adapter and method.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import psutil
import torch

from dopd_vlm.config import RunConfig
from dopd_vlm.memory.dry_step import (
    Bytes,
    dry_rollout,
    dry_run,
    dry_state,
    dry_step,
    filled,
    weight_bytes,
)
from dopd_vlm.methods import Method
from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.routed_loss.softmax import cuda_chunk_rows
from dopd_vlm.training.state import TrainState
from dopd_vlm.types import ViewName

CUDA_CONTEXT = 1 << 30
"""What CUDA, its libraries and their workspaces take of a GPU; a round number, not measured here."""

LARGE = 2
"""Batches of scoring up to which a step is run in one piece."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where a process trains."""

    kind: str
    """cpu or cuda."""
    memory: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Bytes of one phase of a step, by what holds them."""

    weights: int
    optimizer: int
    gradients: int
    kept: int
    """Hidden states and scores of the targets, features of images."""
    activations: int
    """Of forward and backward, caches of keys and values, temporaries."""
    chunk: int
    """Logits, a chunk of tokens at a time."""

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """What a recipe needs per phase, per process, with completions of full length."""

    phases: Mapping[str, Phase]
    process: int
    """Bytes of the process before any model: Python and its libraries, or the CUDA context."""

    @property
    def peak(self) -> int:
        """Bytes at the highest phase, the process included."""
        return self.process + max(phase.total for phase in self.phases.values())


def predict(
    config: RunConfig,
    method: Method,
    prompts: Mapping[ViewName, Sequence[EncodedPrompt]],
    *,
    device: Device,
    num_processes: int = 1,
) -> MemoryReport:
    """Peak bytes of one process's steps.

    Args:
        config: the recipe; its models need no more than config and processor, or are in `known_models.KNOWN`.
        method: its method.
        prompts: encoded prompts of some rows in both views. All are taken to be as long as the longest.
        device: decides number formats and the size of the loss's chunks.
        num_processes: that share the batch.

    Raises:
        ValueError: no prompt in a view, or a model of unknown shape.
    """
    if not all(prompts.values()):
        raise ValueError("a memory report needs at least one encoded prompt in each view")
    state = dry_state(config, method, device.kind)
    trained = sum(
        p.numel() * p.itemsize for p in state.student.model.parameters() if p.requires_grad
    )
    fixed = {"weights": weight_bytes(state), "optimizer": 2 * trained}  # AdamW's two moments
    if device.kind == "cuda" and config.method.chunk_size is None:
        free = device.memory - CUDA_CONTEXT - sum(fixed.values()) - trained
        state = _with_chunks(state, free)
    phases = {}
    for name, part in _phases(state, prompts, num_processes).items():
        gradients = trained if name in ("loss", "step") else 0
        held = int(part.kept) - (trained if name == "step" else 0)
        activations = int(part.activations) - (trained if name == "loss" else 0)
        phases[name] = Phase(
            **fixed,
            gradients=gradients,
            kept=max(0, held),
            activations=max(0, activations),
            chunk=int(part.chunk),
        )
    process = CUDA_CONTEXT if device.kind == "cuda" else resident_bytes()
    return MemoryReport(phases=phases, process=process)


def _with_chunks(state: TrainState, free: int) -> TrainState:
    """The size of a chunk that `softmax.default_chunk_size` would choose with the models in memory."""
    rows = cuda_chunk_rows(free, 4 * state.vocab_size)
    method = replace(state.config.method, chunk_size=rows)
    return replace(state, config=replace(state.config, method=method))


def _phases(
    state: TrainState, prompts: Mapping[ViewName, Sequence[EncodedPrompt]], num_processes: int
) -> dict[str, Bytes]:
    optim, rollout = state.config.optim, state.config.rollout
    wanted = math.ceil(optim.batch_size / num_processes)
    unit = math.ceil(optim.score_batch_size / rollout.num_generations)
    sizes = [wanted] if wanted <= LARGE * unit else [unit, 2 * unit]
    runs = [_step_of(state, prompts, size) for size in sizes]
    bytes_of = {name: _line(sizes, [run[name] for run in runs], wanted) for name in runs[0]}
    bytes_of["rollout"] = _rollout_of(state, prompts, wanted)
    return bytes_of


def _step_of(
    state: TrainState, prompts: Mapping[ViewName, Sequence[EncodedPrompt]], size: int
) -> dict[str, Bytes]:
    with dry_run(state.accelerator.device.type, state.vocab_size) as live:
        return dry_step(state, filled(prompts, size), live)


def _rollout_of(
    state: TrainState, prompts: Mapping[ViewName, Sequence[EncodedPrompt]], wanted: int
) -> Bytes:
    """The last batch of rollouts, and the features of all images before it."""
    size = min(wanted, state.config.rollout.batch_size)
    with dry_run(state.accelerator.device.type, state.vocab_size) as live:
        features = StepFeatures()
        last = dry_rollout(state, filled(prompts, size), features, live)
        return replace(last, kept=live.now * (wanted - size) / size)


def _line(sizes: Sequence[int], peaks: Sequence[Bytes], wanted: int) -> Bytes:
    """The line through two sizes, at the size wanted; of one size, its own."""
    low, high = peaks[0], peaks[-1]
    share = (wanted - sizes[0]) / max(1, sizes[-1] - sizes[0])

    def at(name: str) -> float:
        one, two = getattr(low, name), getattr(high, name)
        return one + share * (two - one)

    return Bytes(**{field.name: at(field.name) for field in fields(Bytes)})


def resident_bytes() -> int:
    """Memory of this process now."""
    return psutil.Process().memory_info().rss


def this_device() -> Device:
    """The GPU, or the machine."""
    if torch.cuda.is_available():
        return Device(kind="cuda", memory=torch.cuda.get_device_properties(0).total_memory)
    return Device(kind="cpu", memory=psutil.virtual_memory().total)
