"""The run folder, metrics.jsonl, decoded samples with regimes, the console and the trackers."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dopd_vlm.config import RunConfig, to_yaml
from dopd_vlm.state import TrainState
from dopd_vlm.step import StepOutput
from dopd_vlm.types import Regime

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
    (run_dir / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")
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
    num_steps: int
    console: Console
    log: Any = None
    """Callable(values, step=...) of the trackers, or None."""

    def __post_init__(self) -> None:
        text = "[bold]{task.description}[/] {task.fields[note]}"
        self.progress = Progress(
            TextColumn(text),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.is_main,
            transient=False,
        )
        self._bar = self.progress.add_task("distil", total=self.num_steps, note="")

    def resume_at(self, step: int) -> None:
        """Forget lines written after the checkpoint: those steps are done again."""
        self.progress.update(self._bar, completed=step)
        if self.is_main:
            for name in ("metrics.jsonl", "samples.jsonl", "skipped.jsonl"):
                _keep_until(self.run_dir / name, step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, the trackers and the console."""
        self.write("metrics.jsonl", {"step": step, **metrics})
        if self.log is not None:
            self.log(dict(metrics), step=step)
        self.progress.update(self._bar, completed=step, note=console_note(metrics))
        if self.is_main and not self.console.is_terminal:
            self.console.print(
                f"step {step}/{self.num_steps}  {console_note(metrics)}", highlight=False
            )

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one JSON line to a file of the run folder."""
        if self.is_main:
            with (self.run_dir / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def say(self, message: str) -> None:
        """A line on the console that stays."""
        if self.is_main:
            self.console.print(message)


def console_note(metrics: Mapping[str, float]) -> str:
    """The few numbers worth watching, in one line."""
    parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    if "rollout/accuracy" in metrics:
        parts.append(f"right {metrics['rollout/accuracy']:.0%}")
    if "threshold/gap" in metrics:
        parts.append(f"gap>{metrics['threshold/gap']:.2f}")
        parts.append("/".join(f"{metrics.get(f'share/{r.name.lower()}', 0.0):.0%}" for r in Regime))
    if "time/tokens_per_second" in metrics:
        parts.append(f"{metrics['time/tokens_per_second']:.0f} tok/s")
    return "  ".join(parts)


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line).get("step", 0) <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    partial.replace(path)


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
                "tokens": state.student.tokenizer.batch_decode(rollout.completion_ids[:, None]),
                "regime": loss.regime[row, :length].tolist(),
                "loss": _rounded(loss.per_token[row, :length]),
            }
            if micro.teacher is not None:
                record["teacher_logp"] = _rounded(micro.teacher.scores.logp[row, :length])
            if micro.self_target is not None:
                record["self_target_logp"] = _rounded(micro.self_target.scores.logp[row, :length])
            records.append(record)
    return records


def _rounded(values: torch.Tensor) -> Sequence[float]:
    return [round(value, 5) for value in values.float().tolist()]
