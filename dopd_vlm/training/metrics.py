"""Sums over micro-batches and processes, and the metrics of a step made from them.

Every mean is divided once, by a count of the whole batch: never a mean of means.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import psutil
import torch

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


def memory_metrics() -> dict[str, float]:
    """memory/process_gib: resident memory of this process; on a GPU memory/gpu_peak_gib since the start."""
    metrics = {"memory/process_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        metrics["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics
