"""The run folder: config, environment, metrics.jsonl and decoded samples with their regimes."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from dopd_vlm.config import RunConfig, to_yaml
from dopd_vlm.jsonl import append_lines, read_lines, write_lines
from dopd_vlm.run_folder import MAPS_FILE, METRICS_FILE
from dopd_vlm.tracking.console import RunView
from dopd_vlm.tracking.token_maps import rounded, token_texts
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import StepOutput

PACKAGES = (
    "dopd-vlm",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
)


def open_run_folder(config: RunConfig) -> Path:
    """runs/NAME with config.yaml and environment.json.

    Raises ValueError when it holds a run already and `resume` is off.
    """
    run_dir = Path(config.output_dir) / str(config.name)
    if (run_dir / "config.yaml").exists() and not config.resume:
        raise ValueError(
            f"{run_dir} holds a run already: set resume=true to go on, or another name=..."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    path, found = run_dir / "environment.json", environment()
    if path.exists():
        first = json.loads(path.read_text(encoding="utf-8"))
        found |= {"command": first["command"], "resumed_by": found["command"]}
    path.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return run_dir


def environment() -> dict[str, Any]:
    """Versions, git hash and command line, so that a run can be repeated from its folder."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git.stdout.strip() or None,
        "command": sys.argv,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


@dataclass(kw_only=True)
class Tracker:
    """Where a run's numbers go. Only the main process writes."""

    run_dir: Path
    is_main: bool
    view: RunView
    log: Any = None
    """Callable(values, step=...) of the trackers, or None."""
    said: set[str] = field(default_factory=set)
    measured_steps: set[int] = field(default_factory=set)
    """Steps whose evaluation the run folder holds, the same on every process."""

    def resume_at(self, step: int) -> None:
        """Forget lines written after the checkpoint: those steps are done again."""
        self.view.resume_at(step)
        lines = read_lines(self.run_dir / METRICS_FILE)
        maps = read_lines(self.run_dir / MAPS_FILE)
        self.measured_steps = {line["step"] for line in (*filter(is_evaluation, lines), *maps)}
        if self.is_main:
            for path in self.run_dir.glob("*.jsonl"):
                _keep_until(path, step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One optimizer step, for metrics.jsonl, the trackers and the console."""
        self.view.step(step, metrics)
        self._record(step, metrics)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Results of an evaluation, for the same three."""
        self.view.measured(step, values)
        if values:
            self._record(step, values)

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self.write(METRICS_FILE, {"step": step, **values})
        if self.log is not None:
            self.log(dict(values), step=step)

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one JSON line to a file of the run folder."""
        if self.is_main:
            append_lines(self.run_dir / name, [record])

    def say(self, message: str) -> None:
        """A line on the console that stays."""
        if self.is_main:
            self.view.say(message)

    def say_once(self, message: str) -> None:
        """The same, but never twice in a run."""
        if message not in self.said:
            self.said.add(message)
            self.say(message)


def is_evaluation(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl holds an evaluation, and not a step."""
    return any(name.startswith(("eval/", "probe/")) for name in line)


def memory_metrics() -> dict[str, float]:
    """memory/process_gib: resident memory of this process; on a GPU memory/gpu_peak_gib since the start."""
    metrics = {"memory/process_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        metrics["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics


def _keep_until(path: Path, step: int) -> None:
    write_lines(path, [record for record in read_lines(path) if record.get("step", 0) <= step])


def decoded_samples(state: TrainState, output: StepOutput, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` completions as token strings, with regime, scores and loss of each token."""
    records = []
    for micro, loss in zip(output.micro_batches, output.losses, strict=True):
        for row, rollout in enumerate(micro.rollouts):
            if len(records) == limit:
                return records
            length = len(rollout.completion_ids)
            record = {
                "uid": rollout.uid,
                "finish_reason": rollout.finish_reason,
                "tokens": token_texts(state.student, rollout.completion_ids),
                "regime": loss.regime[row, :length].tolist(),
                "loss": rounded(loss.per_token[row, :length]),
            }
            if micro.teacher is not None:
                record["teacher_logp"] = rounded(micro.teacher.scores.logp[row, :length])
            if micro.self_target is not None:
                record["self_target_logp"] = rounded(micro.self_target.scores.logp[row, :length])
            records.append(record)
    return records
