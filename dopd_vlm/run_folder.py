"""What a run folder holds: names, how it is opened and cut for a resume, and how pages read it back."""

import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dopd_vlm.config import DataConfig, ModelConfig, RunConfig, to_yaml
from dopd_vlm.jsonl import read_lines, write_lines

MOST_POINTS = 1000
"""Points of a curve; longer ones are averaged over neighbours."""

METRICS_FILE, HISTOGRAMS_FILE, MAPS_FILE = "metrics.jsonl", "histograms.jsonl", "token_maps.jsonl"
PROBES_FILE, SKIPPED_FILE, SAMPLES_FILE = "probes.json", "skipped.jsonl", "samples.jsonl"
ROWS_FILE = "rows.json"
PACKAGES = (
    "dopd-vlm",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
)
PLACES = ("name", "output_dir", "resume")
"""Recipe fields that say where a run writes, not what it does."""
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One quantity over training; None where it was not defined."""

    steps: list[int]
    values: list[float | None]

    def __bool__(self) -> bool:
        return any(value is not None for value in self.values)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run's files."""

    path: Path
    config: Record
    """The resolved recipe as a tree."""
    environment: Record
    metrics: Sequence[Record]
    histograms: Sequence[Record]
    skipped: Sequence[Record]
    probes: Sequence[Record]
    maps: Sequence[Record]
    rows: Record
    """What was found in the rows before the first step; empty where nobody looked."""

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config.get("name") or self.path.name)

    @property
    def last_step(self) -> int:
        """The last optimizer step that was logged; 0 before the first."""
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def max_steps(self) -> int:
        """Steps that the recipe asks for."""
        return int(self.config["optim"]["max_steps"])

    def series(self, name: str, *, where: str | None = None) -> Series:
        """Metric `name` over the steps that have it; None where the metric `where` is 0."""
        lines = [line for line in self.metrics if name in line]
        return thinned(
            Series(
                steps=[line["step"] for line in lines],
                values=[line[name] if where is None or line.get(where) else None for line in lines],
            )
        )

    def names(self, prefix: str, suffix: str = "") -> list[str]:
        """Metrics whose names start and end so, in order of appearance."""
        names = dict.fromkeys(name for line in self.metrics for name in line)
        return [n for n in names if n.startswith(prefix) and n.endswith(suffix)]


def open_run_folder(config: RunConfig, rows: Record | None = None) -> Path:
    """runs/NAME with config.yaml, environment.json and, where rows were tried, rows.json.

    Raises ValueError when it holds a run already and `resume` is off.
    """
    run_dir = Path(config.output_dir) / str(config.name)
    if (run_dir / "config.yaml").exists() and not config.resume:
        raise ValueError(
            f"{run_dir} holds a run already: set resume=true to go on, or another name=..."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    path, record = run_dir / "environment.json", environment()
    if path.exists():
        first = json.loads(path.read_text(encoding="utf-8"))
        record |= {"command": first["command"], "resumed_by": record["command"]}
    path.write_text(json.dumps(record, indent=2), encoding="utf-8")
    if rows:
        (run_dir / ROWS_FILE).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return run_dir


def environment() -> dict[str, Any]:
    """Versions, git hash and command line, so that a run can be repeated from its folder."""
    import torch  # here: pages of a run need none

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


def keep_until(path: Path, step: int) -> None:
    """Drops the records of a JSON-lines file after that step."""
    write_lines(path, [record for record in read_lines(path) if record.get("step", 0) <= step])


def is_evaluation(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl holds an evaluation, and not a step."""
    return any(name.startswith(("eval/", "probe/")) for name in line)


def read_run(path: str | Path) -> RunRecord:
    """The files of a run folder, of a run that is still going on or was killed as well.

    Raises ValueError when there is no run in the folder.
    """
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder} holds no run: there is no config.yaml; give a folder that `dopd train` wrote"
        )
    environment, probes, rows = (
        folder / name for name in ("environment.json", PROBES_FILE, ROWS_FILE)
    )
    return RunRecord(
        path=folder,
        config=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        environment=json.loads(environment.read_text(encoding="utf-8"))
        if environment.exists()
        else {},
        metrics=read_lines(folder / METRICS_FILE),
        histograms=read_lines(folder / HISTOGRAMS_FILE),
        skipped=read_lines(folder / SKIPPED_FILE),
        probes=json.loads(probes.read_text(encoding="utf-8")) if probes.exists() else [],
        maps=read_lines(folder / MAPS_FILE),
        rows=json.loads(rows.read_text(encoding="utf-8")) if rows.exists() else {},
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def recipe_difference(config: Mapping[str, Any]) -> dict[str, Any]:
    """{section.field: value} of what differs from a recipe that names models and data only."""
    default = default_recipe()
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in PLACES and (name not in default or value != default[name])
    }


@functools.cache
def default_recipe() -> Mapping[str, Any]:
    """All fields of a recipe with their defaults, flat."""
    bare = RunConfig(
        student=ModelConfig(path=""), teacher=ModelConfig(path=""), data=DataConfig(train="")
    )
    return flatten(yaml.safe_load(to_yaml(bare)))


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """At most `most` points, each the mean of its neighbours; the step is that of the last of them."""
    size = -(-len(series.steps) // most)
    if size <= 1:
        return series
    steps, values = [], []
    for start in range(0, len(series.steps), size):
        part = [v for v in series.values[start : start + size] if v is not None]
        steps.append(series.steps[start : start + size][-1])
        values.append(sum(part) / len(part) if part else None)
    return Series(steps=steps, values=values)


def running_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    """Mean of each value and the up to width - 1 before it, None left out."""
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        part = [v for v in values[max(0, end - width) : end] if v is not None]
        means.append(sum(part) / len(part) if part else None)
    return means


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Up to `most` of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
