"""Where a run's numbers go: metrics.jsonl, the console, and TensorBoard, trackio or wandb through accelerate.

None of the trackers sends anything by itself: wandb is offline unless WANDB_MODE says otherwise, and
trackio writes to its local folder unless its own variables (TRACKIO_SPACE_ID, TRACKIO_SERVER_URL) name a place.
"""

import contextlib
import importlib.util
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from dopd_vlm.config import RunConfig, to_yaml
from dopd_vlm.jsonl import append_lines, read_lines
from dopd_vlm.run_folder import MAPS_FILE, METRICS_FILE, flatten, is_evaluation, keep_until
from dopd_vlm.tracking.console import RunView

PROJECT = "dopd_vlm"


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
                keep_until(path, step)

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


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError when the package of a tracker is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"tracking={', '.join(missing)} needs a package that is not installed: "
            f"pip install {' '.join(missing)} (all: pip install 'dopd-vlm[trackers]'), "
            "or leave tracking out: metrics.jsonl and report.html need none"
        )


def start_trackers(accelerator: Accelerator, config: RunConfig, run_dir: Path) -> list[str]:
    """Opens the recipe's trackers with the whole recipe as their configuration; what to tell the user."""
    wandb_mode = os.environ.get("WANDB_MODE", "offline")
    options: dict[str, dict[str, Any]] = {
        "trackio": {"name": config.name, "embed": False, "resume": "allow"},
        "wandb": {
            "name": config.name,
            "dir": str(run_dir),
            "mode": wandb_mode,
            "settings": {"silent": True},  # its closing summary is longer than ours
        },
    }
    # trackio prints how to open its dashboard.
    with contextlib.redirect_stdout(io.StringIO()):
        accelerator.init_trackers(PROJECT, config=flat_config(config), init_kwargs=options)
    if "wandb" in config.tracking and wandb_mode == "offline":
        return [f"wandb is offline; `wandb sync {run_dir}/wandb/offline-run-*` sends the run"]
    return []


def stop_trackers(accelerator: Accelerator) -> None:
    """Writes what the trackers still hold and closes them."""
    names = [tracker.name for tracker in accelerator.trackers]
    with contextlib.redirect_stdout(io.StringIO()):
        accelerator.end_training()
        if "trackio" in names and accelerator.is_main_process:
            import trackio  # type: ignore[import-not-found]

            trackio.finish()  # else it closes the run once more, loudly, when Python exits


def flat_config(config: RunConfig) -> dict[str, Any]:
    """{"section.field": value} with values that every tracker takes: numbers, booleans and text."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in flatten(yaml.safe_load(to_yaml(config))).items()
    }


def log_token_maps(accelerator: Accelerator, page: str, text: str, step: int) -> None:
    """The token maps as HTML where the tracker takes it, as text where not."""
    for tracker in accelerator.trackers:
        tracker.log({"token_maps": _shown(tracker.name, page, text)}, step=step)


def _shown(tracker: str, page: str, text: str) -> Any:
    if tracker == "wandb":
        import wandb  # type: ignore[import-not-found]

        return wandb.Html(page, inject=False)
    if tracker == "trackio":
        import trackio  # type: ignore[import-not-found]

        return trackio.Html(page)
    return text
