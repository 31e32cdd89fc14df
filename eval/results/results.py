"""`Results` of one benchmark in one view, and the JSON that holds them."""

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dopd_vlm.jsonl import write_whole
from dopd_vlm.types import ViewName

from ..completions.requests import digest
from .stats import Estimate, interval, paired_difference


@dataclass(frozen=True, kw_only=True)
class Results:
    """What one model reached on one benchmark in one view."""

    name: str
    view: ViewName
    model: str
    accuracy: float
    """Mean over questions of each question's mean score, in [0, 1]."""
    stderr: float
    """Closed form over questions, clustered where the benchmark names a cluster; nan for one."""
    n: int
    """Questions."""
    num_generations: int
    """Completions per question; more than one makes `accuracy` avg@k."""
    unparsed_rate: float
    """Share of completions from which no answer could be read; they count as wrong."""
    empty_rate: float = 0.0
    """Share of completions without a visible character; they are unparsed too."""
    truncated_rate: float
    """Share of completions cut at the token limit."""
    error_rate: float
    """Share of completions whose scorer failed; they count as wrong."""
    failed_rate: float = 0.0
    """Share of completions that a server did not deliver; they count as wrong, a second run asks again."""
    per_question: Mapping[str, float]
    """uid -> mean score, for paired statistics."""
    clusters: Mapping[str, str] = field(default_factory=dict)
    """uid -> cluster: the benchmark's, or the image where questions share one; else empty."""
    categories: Mapping[str, float] = field(default_factory=dict)
    """Category -> accuracy."""
    category_stderr: Mapping[str, float | None] = field(default_factory=dict)
    """Category -> stderr as of `stderr`; None for a single question."""
    category_n: Mapping[str, int] = field(default_factory=dict)
    """Category -> its questions."""
    pass_at: Mapping[str, float] = field(default_factory=dict)
    """`pass@k` -> unbiased estimate, k up to num_generations."""
    second: Mapping[str, float] = field(default_factory=dict)
    """Second metrics in [0, 1] by name: clusters that are all right, means of means, parts of scores."""
    mean_tokens: float = 0.0
    """Mean completion length in tokens."""
    samples_path: Path | None = None
    """The samples file; None when nothing was written."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """gen_config, hashes and whatever else the numbers depend on."""

    @property
    def reference(self) -> Mapping[str, float]:
        """Published numbers in percent: model or method -> accuracy."""
        return self.settings.get("paper", {})

    @property
    def official(self) -> Estimate:
        """The metric that published numbers are; the accuracy unless the task names another."""
        name = self.settings.get("official")
        if not name or name not in self.second:
            return Estimate(value=self.accuracy, stderr=self.stderr, n=self.n)
        stderr = self.second.get(f"{name}_stderr", math.nan)
        return Estimate(value=self.second[name], stderr=stderr, n=self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % interval (Wilson's)."""
        return interval(self.accuracy, self.stderr, self.n)

    @property
    def metric(self) -> str:
        """`accuracy`, or `avg@k` over k completions."""
        return "accuracy" if self.num_generations == 1 else f"avg@{self.num_generations}"


def privilege_gap(plain: Results, privileged: Results) -> dict[str, float]:
    """Accuracy of the privileged minus the plain view on the same questions, with paired stderr."""
    difference = paired_difference(
        privileged.per_question, plain.per_question, plain.clusters or None
    )
    return {"privilege_gap": difference.value, "privilege_gap_stderr": difference.stderr}


def results_json(results: Sequence[Results]) -> dict[str, Any]:
    """lm-eval's top-level names, one entry `<task>__<view>` per Results, and our own names."""
    entries = {f"{one.name}__{one.view}": one for one in results}
    gaps = {
        plain.name: privilege_gap(plain, entries[f"{plain.name}__privileged"])
        for plain in results
        if plain.view == "plain" and f"{plain.name}__privileged" in entries
    }
    return {
        "results": {key: _row(key, one, gaps.get(one.name, {})) for key, one in entries.items()},
        "configs": {key: dict(one.settings) for key, one in entries.items()},
        "higher_is_better": {key: {one.metric: True} for key, one in entries.items()},
        "n-samples": {
            key: {"original": one.settings.get("num_samples", one.n), "effective": one.n}
            for key, one in entries.items()
        },
        "task_hashes": {key: digest(sorted(one.per_question)) for key, one in entries.items()},
        "model_name": results[0].model if results else "",
        "transformers_version": importlib.metadata.version("transformers"),
        "dopd": [_plain(one) for one in results],
    }


def write_results(results: Sequence[Results], folder: Path, name: str = "results.json") -> Path:
    """Write `results_json` as a whole file and return its path."""
    path = folder / name
    write_whole(path, json.dumps(results_json(results), indent=1, ensure_ascii=False) + "\n")
    return path


def read_results(path: Path) -> list[Results]:
    """The Results in a file of `write_results`, or in the `results.json` of a folder.

    Raises:
        ValueError: no such file, or one written by something else.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"no evaluation results at {path}; run `dopd evaluate` with --out first")
    tree = json.loads(path.read_text(encoding="utf-8"))
    if "dopd" not in tree:
        raise ValueError(f"{path} was not written by `dopd evaluate`")
    return [_from_plain(entry) for entry in tree["dopd"]]


def _row(key: str, results: Results, gap: Mapping[str, float]) -> dict[str, Any]:
    row = {
        "name": key,
        "alias": results.name,
        "sample_len": results.n,
        f"{results.metric},none": results.accuracy,
        f"{results.metric}_stderr,none": results.stderr,
        "interval_low": results.interval[0],
        "interval_high": results.interval[1],
        "view": results.view,
        "unparsed_rate": results.unparsed_rate,
        "truncated_rate": results.truncated_rate,
        "empty_rate": results.empty_rate,
        "scorer_error_rate": results.error_rate,
        "failed_rate": results.failed_rate,
        "mean_completion_length": results.mean_tokens,
        **results.pass_at,
        **results.second,
        **gap,
    }
    return {name: _finite(value) for name, value in row.items()}


def _plain(results: Results) -> dict[str, Any]:
    tree = asdict(results)
    tree["samples_path"] = results.samples_path.name if results.samples_path else None
    return {name: _finite(value) for name, value in tree.items()}


def _from_plain(tree: Mapping[str, Any]) -> Results:
    path = tree["samples_path"]
    stderr = math.nan if tree["stderr"] is None else tree["stderr"]
    return Results(**{**tree, "samples_path": Path(path) if path else None, "stderr": stderr})


def _finite(value: Any) -> Any:
    """JSON has no nan."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
