"""Runs a benchmark: requests -> completions -> scores -> Results.

Work is shared by question over the processes of `accelerate launch` or `torchrun`; every process
returns the same Results and the first one writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.progress import Progress

from dopd_vlm.config import ModelConfig
from dopd_vlm.distributed import process_state
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.errors import unknown
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.rollout import OwnEngine, RolloutEngine
from dopd_vlm.types import Sample, Sampling, ViewName

from .benchmarks.benchmark import Benchmark, load_benchmark
from .completions.complete import Source, complete_all
from .completions.endpoint import IMAGE_FORMATS, endpoint_ask, endpoint_name
from .completions.generators import Generate, engine_generator, halving
from .completions.judge import Judge, judge_store, judge_summary
from .completions.records import scored
from .completions.requests import (
    digest,
    image_settings,
    make_requests,
    model_fingerprint,
    with_pixels,
)
from .completions.store import Record, SampleStore
from .results.aggregate import aggregate
from .results.results import Results, write_results
from .scorers import row_scorer

VIEWS: tuple[ViewName, ...] = ("plain", "privileged")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One benchmark in one view: everything that its requests depend on but the model."""

    task: Benchmark
    view: ViewName
    samples: Sequence[Sample]
    sampling: Sampling
    num_samples: int
    """Questions before `limit`."""

    @property
    def title(self) -> str:
        """For the progress bar."""
        return f"{self.task.name} {self.view}"


def evaluate(
    model: str | Policy | Endpoint,
    benchmark: str | Benchmark,
    *,
    view: ViewName = "plain",
    samples: Sequence[Sample] | None = None,
    generation: Mapping[str, Any] | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    batch_size: int = 32,
    seed: int | None = None,
    engine: RolloutEngine | None = None,
    generate: Generate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    image_format: str = "png",
    pixels: tuple[int, int] | None = None,
    judge: Endpoint | None = None,
    progress: Progress | None = None,
) -> Results:
    """Scores of a model on a benchmark in one view.

    Args:
        model: a folder or hub id, a loaded model with its processor, or an endpoint to ask.
        benchmark: a name in eval/tasks, a path of a YAML file, or a Benchmark.
        view: what the model sees: `plain`, or `privileged` with the samples' annotations.
        samples: the benchmark's questions, built from rows by the caller (the harness reads none).
        generation: decoding settings that differ from the benchmark's.
        limit: the first questions only.
        out: folder of the samples and results files; a second run there goes on where one was
            killed and ends with the same files. None writes nothing.
        batch_size: prompts generated at once; halved while memory does not suffice.
        seed: of sampled completions, in place of the benchmark's; greedy ones do not depend on it.
        engine: samples completions of the local model, under the weights that it holds; None
            samples from the model itself.
        generate: makes completions in place of the local model, which is then only a name.
        template_kwargs: given to the chat template.
        image_format: how images travel to an endpoint, `png` (every pixel) or `jpeg`.
        pixels: fewest and most pixels to which the model's processor scales an image; None leaves it.
        judge: a model that judges the answers of benchmarks whose protocol has one (`completions/judge.py`).
        progress: a running rich display to add a bar to.

    Raises:
        ValueError: unknown view, task or setting; no samples; a uid held twice.
    """
    task = load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    given = list(samples or ())[:limit]
    _check(task, view, given)
    seeded = {} if seed is None else {"seed": seed}
    job = Job(
        task=task,
        view=view,
        samples=given,
        sampling=replace(task.generation, **_checked_settings(generation or {}), **seeded),
        num_samples=len(samples or ()),
    )
    source = _source(
        model,
        engine,
        generate,
        template_kwargs,
        image_format=image_format,
        pixels=pixels,
        batch_size=batch_size,
    )
    return _run(job, source, Path(out) if out else None, batch_size, judge, progress)


def _run(
    job: Job,
    source: Source,
    out: Path | None,
    batch_size: int,
    judge: Endpoint | None,
    progress: Progress | None,
) -> Results:
    state = process_state()
    store = SampleStore(out, job.task.name, job.view, state.process_index) if out else None
    requests = make_requests(
        job.task,
        job.samples,
        view=job.view,
        sampling=job.sampling,
        model_hash=source.fingerprint,
    )
    mine = [r for r in requests if r.doc_id % state.num_processes == state.process_index]
    completions = complete_all(
        source,
        mine,
        job.sampling,
        batch_size=batch_size,
        store=store,
        progress=progress,
        title=job.title,
    )
    count = row_scorer(job.task.answer_type, job.task.scorer)
    records = [scored(r, job.samples[r.doc_id], completions[r.key], count, job.view) for r in mine]
    if judge is not None and job.task.judge:
        records = _judged(records, job, judge, out, progress)
    if state.num_processes > 1:
        records = sorted(gather_object(records), key=lambda r: (r["doc_id"], r["sample_idx"]))
    results = replace(
        aggregate(job.task, job.view, source.name, job.samples, records),
        samples_path=store.path if store else None,
        settings=_settings(job, source),
    )
    if judge is not None and job.task.judge:
        results = _with_judge(results, records, judge)
    if store is not None and state.is_main_process:
        _write(results, records, store)
    state.wait_for_everyone()
    return results


def _judged(
    records: Sequence[Record],
    job: Job,
    judge: Endpoint,
    out: Path | None,
    progress: Progress | None,
) -> list[Record]:
    count = row_scorer(job.task.answer_type, job.task.scorer)
    store = judge_store(out, job.task.name, job.view, process_state().process_index)
    asked = Judge(judge, job.task.judge, count, store)
    return asked.judged(records, job.samples, progress, f"{job.title} judge")


def _with_judge(results: Results, records: Sequence[Record], judge: Endpoint) -> Results:
    summary = judge_summary(records, endpoint_name(judge))
    agreement = {} if summary["agreement"] is None else {"judge_agreement": summary["agreement"]}
    return replace(
        results,
        second={**results.second, **agreement},
        settings={**results.settings, "judge": summary},
    )


def _write(results: Results, records: Sequence[Record], store: SampleStore) -> None:
    store.finish(records)
    write_results([results], store.path.parent, f"results_{results.name}__{results.view}.json")


def _source(
    model: str | Policy | Endpoint,
    engine: RolloutEngine | None,
    generate: Generate | None,
    template_kwargs: Mapping[str, Any] | None,
    *,
    image_format: str,
    pixels: tuple[int, int] | None,
    batch_size: int,
) -> Source:
    if isinstance(model, Endpoint):
        return _remote(model, template_kwargs, image_format, pixels)
    if generate is not None:
        name = model if isinstance(model, str) else model.path
        return Source(complete=halving(generate), name=name, fingerprint=digest(name))
    if isinstance(model, str):
        device = process_state().device or "cpu"
        model = load_policy(ModelConfig(path=model), device=device, trainable=False)
    model = model if pixels is None else with_pixels(model, pixels)
    engine = engine or OwnEngine(model, batch_size=batch_size)
    return Source(
        complete=halving(engine_generator(engine, model.encoder, template_kwargs)),
        name=model.path,
        fingerprint=model_fingerprint(model, template_kwargs),
        settings={
            "template_kwargs": dict(template_kwargs or {}),
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "image_processor": image_settings(model),
        },
    )


def _remote(
    endpoint: Endpoint,
    template_kwargs: Mapping[str, Any] | None,
    image_format: str,
    pixels: tuple[int, int] | None,
) -> Source:
    if image_format not in IMAGE_FORMATS:
        raise unknown("image format", image_format, IMAGE_FORMATS)
    name, kwargs = endpoint_name(endpoint), dict(template_kwargs or {})
    # JPEG changes pixels; as long as none changes, earlier answers stay valid.
    changed = [one for one in (image_format, pixels) if one not in ("png", None)]
    return Source(
        ask=endpoint_ask(endpoint, kwargs, image_format, pixels),
        name=name,
        fingerprint=digest([name, kwargs, *changed]),
        settings={"template_kwargs": kwargs, "image_format": image_format, "pixels": pixels},
    )


def _settings(job: Job, source: Source) -> dict[str, Any]:
    return {
        "gen_config": {**asdict(job.sampling), "stop": list(job.sampling.stop)},
        "seed": job.sampling.seed,
        "prompts": asdict(job.task.prompts),
        "prompt_template_sha": digest(asdict(job.task.prompts)),
        "answer_type": job.task.answer_type,
        "scorer": dict(job.task.scorer),
        "model_hash": source.fingerprint,
        "rows": job.task.rows,
        "num_samples": job.num_samples,
        "paper": dict(job.task.paper),
        "official": job.task.official,
        **source.settings,
    }


def _checked_settings(generation: Mapping[str, Any]) -> Mapping[str, Any]:
    known = {entry.name for entry in fields(Sampling)}
    for name in generation.keys() - known:
        raise unknown("generation setting", name, sorted(known))
    return generation


def _check(task: Benchmark, view: str, samples: Sequence[Sample]) -> None:
    if view not in VIEWS:
        raise ValueError(f"view {view!r} is not one of {', '.join(VIEWS)}")
    if not samples:
        raise ValueError(
            f"task {task.name!r}: no samples to evaluate; {task.access or 'check its rows'}"
        )
    uids = [sample.uid for sample in samples]
    if len(set(uids)) < len(uids):
        twice = next(uid for uid in uids if uids.count(uid) > 1)
        raise ValueError(f"task {task.name!r}: two samples have the uid {twice!r}")
