"""Recipe or benchmark -> samples.

`dopd_vlm` knows neither rows nor benchmarks, and `data` and `eval` are strangers; they meet here.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image
from rich.console import Console

from dopd_vlm import plugins
from dopd_vlm.config import DataConfig, ModelConfig, RunConfig
from dopd_vlm.data.embedded.sets import embedded_model, embedded_rows, is_embedded
from dopd_vlm.data.further_views import check_views, with_views
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import AnnotationChoice, check_choices, make_sample, make_samples
from dopd_vlm.eval.benchmarks.benchmark import Benchmark, load_benchmark
from dopd_vlm.eval.benchmarks.convert import convert
from dopd_vlm.eval.benchmarks.sources import raw_rows
from dopd_vlm.eval.completions.requests import images_hash
from dopd_vlm.eval.scorers import row_scorer, score
from dopd_vlm.types import Sample, View

HELD_BYTES, HELD_TEXT = 8 * 2**20, 4096
"""Pixels that checked samples may hold until training asks for them, and what the rest of one may take.

Few: a run on many rows holds little more than one on few (tests/test_streaming.py).
"""
PROGRAMS = ("code", "tests", "arrangement")
"""Answer types whose scorers run the completion."""
LISTED = 10
"""Reasons that are printed; the others are counted."""
SOME_ANSWER = "The answer is A"
"""A completion that each scorer gets as far with as to read the row's own answer."""


class LazySamples(Sequence[Sample]):
    """Samples made from rows when asked for; a bad row raises ValueError naming its uid and file."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        make: Callable[[Mapping[str, Any]], Sample],
        views: Sequence[str] = (),
    ) -> None:
        """`views`: names in data.further_views.VIEWS that every sample gets."""
        check_views(views)
        self._rows, self._make, self._views = rows, make, tuple(views)
        self._held: dict[int, Sample] = {}
        self._room = HELD_BYTES

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        held = self._held.get(index)
        if held is not None:
            return held
        sample = self._make(self._rows[index])
        return with_views(sample, self._views, self._rows, index, self._make)

    def hold(self, index: int, sample: Sample) -> None:
        """Keeps a sample that was made, so that its row is not decoded and drawn on again, while there is room."""
        views = (sample.plain, sample.privileged, *sample.views.values())
        images = {id(image): image for view in views for image in view.images}
        size = HELD_TEXT + sum(3 * image.width * image.height for image in images.values())
        if size <= self._room:
            self._held[index] = sample
            self._room -= size

    # data.workers sends samples to other processes, which know nothing of --plugin.
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": {}, "plugins": plugins.files()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for path in state.pop("plugins"):
            plugins.load_file(path)
        vars(self).update(state)


def rows_of(source: str, split: str | None) -> Sequence[Mapping[str, Any]]:
    """Rows of a recipe's source, embedded ones included."""
    return embedded_rows(source) if is_embedded(source) else read_rows(source, split=split)


def training_samples(
    data: DataConfig,
    *,
    resize: Callable[..., Any] | None = None,
    views: Sequence[str] = (),
) -> LazySamples:
    """The recipe's samples, one at a time, with further `views`; unknown types, forms and views raise at once."""
    check_choices(data.annotations)
    rows = rows_of(data.train, data.split)[: data.limit]
    # No closure: data.workers sends it to other processes.
    make = partial(make_sample, annotations=data.annotations, coords=data.coords, resize=resize)
    return LazySamples(rows, make, views)


def further_views(config: RunConfig) -> tuple[str, ...]:
    """The views that the recipe's method needs besides plain and privileged."""
    from dopd_vlm.methods import (
        configured_method,  # here: it needs torch, which the help does without
    )

    return tuple(v for v in configured_method(config).views if v not in ("plain", "privileged"))


def resizer(config: RunConfig) -> Callable[..., Any] | None:
    """How the student's processor resizes an image; only Qwen2.5's coordinates ask for it.

    `config` is a resolved one. For the other families no processor is loaded.
    """
    if config.data.coords != "qwen2_5":
        return None
    from transformers import AutoProcessor  # here: without boxes in its pixels no recipe needs it

    from dopd_vlm.data.coords import resized_size

    student = config.student
    processor = AutoProcessor.from_pretrained(
        student.path, trust_remote_code=student.trust_remote_code
    )
    return partial(resized_size, processor)


def resolved(config: RunConfig) -> RunConfig:
    """The config with `embedded:` model names replaced by their folders."""
    return replace(config, student=_model(config.student), teacher=_model(config.teacher))


def _model(model: ModelConfig) -> ModelConfig:
    return replace(model, path=local_path(model.path))


def local_path(model: str) -> str:
    """The folder of an `embedded:` model; any other name as it is."""
    return str(embedded_model(model)) if is_embedded(model) else model


def score_answer(text: str, sample: Sample) -> float | None:
    """Correctness of a completion by the sample's own answer type; None where that cannot be said."""
    try:
        return score(text, sample).correct
    except Exception:  # whatever a scorer raises costs this completion only, never the run
        return None


def answer_problem(
    sample: Sample, answer_type: str = "row", options: Mapping[str, Any] | None = None
) -> str | None:
    """Why no completion can be scored against the sample's answer; None where one can.

    Args:
        answer_type: which scorer counts, as in a benchmark; `row` takes the sample's own.
        options: of the scorer.

    Answers that are programs are not run: only an empty one is a problem.
    """
    kind = sample.answer_type if answer_type == "row" else answer_type
    try:
        if kind not in PROGRAMS or not sample.answer.strip():
            row_scorer(answer_type, options or {})(SOME_ANSWER, sample)
    except Exception as error:  # a scorer may raise anything for an answer it cannot read
        name = f"sample {sample.uid!r}: "
        return f"{name}{str(error).removeprefix(name)}{sample.place}"
    return None


def scorable(samples: Sequence[Sample], task: Benchmark) -> tuple[list[Sample], list[str]]:
    """The samples whose answers the task's scorer reads, and why each other one cannot count."""
    reasons = [answer_problem(sample, task.answer_type, task.scorer) for sample in samples]
    good = [sample for sample, reason in zip(samples, reasons, strict=True) if reason is None]
    return good, [reason for reason in reasons if reason is not None]


def benchmark_samples(
    name: str, data: DataConfig, resize: Callable[..., Any] | None, console: Console
) -> tuple[list[Sample], list[str]]:
    """A benchmark's questions with the privileged view of the recipe's annotations, and why rows are left out.

    The first reasons are printed.
    """
    benchmark = load_benchmark(name)
    converted = convert(benchmark, rows_of(benchmark.rows, benchmark.split))
    samples, skipped = make_samples(
        converted.rows, data.annotations, coords=data.coords, resize=resize
    )
    good, unreadable = scorable(samples, benchmark)
    problems = [*converted.problems, *(one.reason for one in skipped), *unreadable]
    if problems:
        say_left_out(name, problems, console)
    if not good:
        raise ValueError(f"task {name!r} has no usable row: {[*problems, 'it is empty'][0]}")
    return good, problems


def say_left_out(task: str, problems: Sequence[str], console: Console) -> None:
    """How many rows of the task are left out, and the first reasons."""
    console.print(f"{task}: {len(problems)} rows are left out:", markup=False)
    for reason in problems[:LISTED]:
        console.print(f"  {reason}", markup=False)
    if len(problems) > LISTED:
        console.print(f"  and {len(problems) - LISTED} more")


def task_samples(task: Benchmark, options: argparse.Namespace, console: Console) -> list[Sample]:
    """The task's questions; rows that make none are counted and the first ones shown."""
    annotations = annotation_choices(split_names(options.annotations or "")) or list(
        task.annotations
    )
    source = options.rows and options.rows.replace("{task}", task.name)
    converted = convert(task, task_rows(task, source), options.limit)
    pool, samples, problems = ImagePool(), [], list(converted.problems)
    for row in converted.rows:  # one by one, so that equal images are never held twice
        good, skipped = make_samples([row], annotations, coords=options.coords)
        good, unreadable = scorable(good, task)
        samples += map(pool.share, good)
        problems += [*(one.reason for one in skipped), *unreadable]
    if converted.left_out:
        console.print(
            f"{task.name}: {converted.left_out} rows are not among those that the task keeps",
            markup=False,
        )
    if problems:
        say_left_out(task.name, problems, console)
    return samples


def task_rows(task: Benchmark, source: str | None) -> Sequence[Mapping[str, Any]]:
    """The task's rows in the benchmark's own schema, from `source` where it is given."""

    def read(source: str, *, split: str | None, name: str | None) -> Sequence[Mapping[str, Any]]:
        is_ours = is_embedded(source)
        return rows_of(source, split) if is_ours else read_rows(source, split=split, name=name)

    return raw_rows(task, read, source)


class ImagePool:
    """Samples whose equal images are one object: an image of many questions is held once.

    POPE's 9,000 questions have 500 images, VSI-Bench's 5,130 have the frames of 288 videos.
    """

    def __init__(self) -> None:
        self._by_hash: dict[str, Image.Image] = {}

    def share(self, sample: Sample) -> Sample:
        """The sample with each image replaced by the first equal one."""
        return replace(
            sample, plain=self._view(sample.plain), privileged=self._view(sample.privileged)
        )

    def _view(self, view: View) -> View:
        images = [self._by_hash.setdefault(images_hash([one]), one) for one in view.images]
        return replace(view, images=tuple(images))


def annotation_choices(names: Sequence[str]) -> list[AnnotationChoice]:
    """NAME or NAME:FORM as a recipe says it: the name, or the pair."""
    pairs = [name.partition(":") for name in names]
    return [(name, form) if form else name for name, _, form in pairs]


def split_names(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
