"""What the scripts share: recipe -> samples for training, and callables for evaluation.

`dopd_vlm` knows neither rows nor benchmarks, and `data` and `eval` are strangers; they meet here.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from dopd_vlm.config import DataConfig, ModelConfig, RunConfig
from dopd_vlm.data.embedded import embedded_model, embedded_rows, is_embedded
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import check_choices, make_sample
from dopd_vlm.types import Sample

# scripts/evaluate.py would stand in for the library `evaluate`, which dopd_vlm.eval imports.
sys.path.sort(key=lambda entry: Path(entry or ".").resolve() == Path(__file__).parent.resolve())


class LazySamples(Sequence[Sample]):
    """Samples made from rows when asked for; a bad row raises ValueError naming its uid and file."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], make: Callable[[Mapping[str, Any]], Sample]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self._make(self._rows[index])


def rows_of(source: str, split: str | None) -> Sequence[Mapping[str, Any]]:
    """Rows of a recipe's source, embedded ones included."""
    return embedded_rows(source) if is_embedded(source) else read_rows(source, split=split)


def training_samples(data: DataConfig, *, resize: Callable[..., Any] | None = None) -> LazySamples:
    """The recipe's samples, one at a time; unknown annotation types and forms raise at once."""
    check_choices(data.annotations)
    rows = rows_of(data.train, data.split)[: data.limit]

    def make(row: Mapping[str, Any]) -> Sample:
        return make_sample(row, data.annotations, coords=data.coords, resize=resize)

    return LazySamples(rows, make)


def good_rows(samples: LazySamples, limit: int, console: Console) -> tuple[int, list[str]]:
    """How many of the first `limit` rows make a sample, and what is wrong with the others."""
    problems = []
    count = min(limit, len(samples))
    for index in track(range(count), "checking rows", console=console, transient=True):
        try:
            samples[index]
        except ValueError as error:
            problems.append(str(error))
    return count - len(problems), problems


def resolved(config: RunConfig) -> RunConfig:
    """The config with `embedded:` model names replaced by their folders."""
    return replace(config, student=_model(config.student), teacher=_model(config.teacher))


def _model(model: ModelConfig) -> ModelConfig:
    return replace(model, path=str(embedded_model(model.path))) if is_embedded(model.path) else model
