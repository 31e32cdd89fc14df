"""Sums over micro-batches and processes, and the metrics of a step made from them.

Every mean is divided once, by a count of the whole batch: never a mean of means.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from dopd_vlm.routed_loss.loss import LossOutput
from dopd_vlm.types import Rollout


def batch_sums(losses: Sequence[LossOutput], rollouts: Sequence[Rollout]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for output in losses:
        for name, value in output.metrics.items():
            sums[name] += float(value)
        sums["loss"] += float(output.loss.detach())
    sums["count/sequences"] += len(rollouts)
    sums["count/completion_tokens"] += sum(len(r.completion_ids) for r in rollouts)
    sums["count/truncated"] += sum(r.finish_reason == "length" for r in rollouts)
    return sums


def total_of(accelerator: Accelerator, sums: Mapping[str, float]) -> Counter[str]:
    """Sums over processes, in the order of their ranks."""
    if accelerator.num_processes == 1:
        return Counter(sums)
    total: Counter[str] = Counter()
    for part in gather_object([dict(sums)]):
        total.update(part)
    return total


def batch_averages(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the whole batch from its sums, each divided once by its own count."""

    def mean(value: str, count: str) -> float:
        return sums[value] / sums[count] if sums[count] else 0.0

    metrics = {
        "loss": sums["loss"],
        "divergence/all": mean("divergence/all", "count/tokens"),
        "entropy/student": mean("entropy/student", "count/trained"),
        "rollout/length": mean("count/completion_tokens", "count/sequences"),
        "rollout/truncated": mean("count/truncated", "count/sequences"),
        "count/completion_tokens": sums["count/completion_tokens"],
        "count/sequences": sums["count/sequences"],
    }
    for name in ("lh", "ll", "ht", "hs"):
        metrics[f"share/{name}"] = mean(f"count/{name}", "count/tokens")
        metrics[f"divergence/{name}"] = mean(f"divergence/{name}", f"count/{name}")
    for name in ("gap/all", "prob/self_target", "prob/teacher"):
        if name in sums:
            metrics[name.replace("/all", "/mean")] = mean(name, "count/tokens")
    return metrics


def gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """Rows of all processes, of which each may hold another number; NaN marks the padding."""
    if accelerator.num_processes == 1:
        return rows.cpu()
    padded = accelerator.pad_across_processes(rows, dim=0, pad_index=float("nan"))  # type: ignore[arg-type]
    gathered = accelerator.gather(padded)
    assert isinstance(gathered, Tensor)
    return gathered[~gathered.isnan().any(-1)].cpu()


def memory_metrics() -> dict[str, float]:
    """memory/process_gib: resident memory of this process; on a GPU memory/gpu_peak_gib since the start."""
    metrics = {"memory/process_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        metrics["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics
