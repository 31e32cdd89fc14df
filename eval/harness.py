"""Runs a benchmark: requests -> completions -> scores -> Results.

Work is shared by question over the processes of `accelerate launch` or `torchrun`; every process
returns the same Results and the first one writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import Progress

from dopd_vlm.config import ModelConfig
from dopd_vlm.distributed import process_state
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.types import Sample, ViewName

from .benchmarks.benchmark import Benchmark, Generation, load_benchmark
from .completions.endpoint import endpoint_generator, endpoint_name
from .completions.generators import Completion, Generate, halving, local_generator
from .completions.records import finished, scored, stored
from .completions.requests import (
    Request,
    digest,
    image_settings,
    make_requests,
    model_fingerprint,
)
from .completions.store import Record, SampleStore
from .results.aggregate import aggregate
from .results.results import Results, write_results
from .scorers import row_scorer

VIEWS: tuple[ViewName, ...] = ("plain", "privileged")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where completions come from, and what their hashes and the results file say about it."""

    complete: Generate
    name: str
    fingerprint: str
    makes_whole_batches: bool = True
    """Whether an answer depends on the others of its batch, as in a model's padded arithmetic."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One benchmark in one view: everything that its requests depend on but the model."""

    task: Benchmark
    view: ViewName
    samples: Sequence[Sample]
    generation: Generation
    seed: int
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
    seed: int = 0,
    generate: Generate | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
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
        seed: of sampled completions; greedy ones do not depend on it.
        generate: makes completions in place of the local model, which is then only a name.
        template_kwargs: given to the chat template.
        progress: a running rich display to add a bar to.

    Raises:
        ValueError: unknown view, task or setting; no samples; a uid held twice.
    """
    task = load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    chosen = list(samples or ())[:limit]
    _check(task, view, chosen)
    job = Job(
        task=task,
        view=view,
        samples=chosen,
        generation=replace(task.generation, **_checked_settings(generation or {})),
        seed=seed,
        num_samples=len(samples or ()),
    )
    source = _source(model, generate, template_kwargs, process_state())
    return _run(job, source, Path(out) if out else None, batch_size, progress)


def _run(
    job: Job, source: Source, out: Path | None, batch_size: int, progress: Progress | None
) -> Results:
    state = process_state()
    store = SampleStore(out, job.task.name, job.view, state.process_index) if out else None
    requests = make_requests(
        job.task,
        job.samples,
        view=job.view,
        generation=job.generation,
        model_hash=source.fingerprint,
        seed=job.seed,
    )
    mine = [r for r in requests if r.doc_id % state.num_processes == state.process_index]
    completions = _complete(mine, job, source, batch_size, store, progress)
    count = row_scorer(job.task.answer_type, job.task.scorer)
    records = [scored(r, job.samples[r.doc_id], completions[r.key], count, job.view) for r in mine]
    if state.num_processes > 1:
        records = sorted(gather_object(records), key=lambda r: (r["doc_id"], r["sample_idx"]))
    found = replace(
        aggregate(job.task, job.view, source.name, job.samples, records),
        samples_path=store.path if store else None,
        settings=_settings(job, source),
    )
    if store is not None and state.is_main_process:
        _write(found, records, store)
    state.wait_for_everyone()
    return found


def _write(found: Results, records: Sequence[Record], store: SampleStore) -> None:
    store.finish(records)
    write_results([found], store.path.parent, f"results_{found.name}__{found.view}.json")


def _source(
    model: str | Policy | Endpoint,
    generate: Generate | None,
    template_kwargs: Mapping[str, Any] | None,
    state: PartialState,
) -> Source:
    if isinstance(model, Endpoint):
        return _remote(model, template_kwargs)
    if generate is not None:
        name = model if isinstance(model, str) else model.path
        return Source(complete=halving(generate), name=name, fingerprint=digest(name))
    if isinstance(model, str):
        model = load_policy(ModelConfig(path=model), device=state.device or "cpu", trainable=False)
    return Source(
        complete=halving(local_generator(model, template_kwargs)),
        name=model.path,
        fingerprint=model_fingerprint(model, template_kwargs),
        settings={
            "template_kwargs": dict(template_kwargs or {}),
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "image_processor": image_settings(model),
        },
    )


def _remote(endpoint: Endpoint, template_kwargs: Mapping[str, Any] | None) -> Source:
    name, kwargs = endpoint_name(endpoint), dict(template_kwargs or {})
    return Source(
        complete=endpoint_generator(endpoint, kwargs),
        name=name,
        fingerprint=digest([name, kwargs]),
        makes_whole_batches=False,
        settings={"template_kwargs": kwargs},
    )


def _complete(
    requests: Sequence[Request],
    job: Job,
    source: Source,
    batch_size: int,
    store: SampleStore | None,
    progress: Progress | None,
) -> dict[str, Completion]:
    """Key -> completion of all requests; what the store holds is not made again.

    Batches hold prompts of like length, the longest first: memory runs out at once or never, and
    the time left is not promised too short. They are a function of the requests alone, each seeded
    by its first key: a batch that was half written is made anew, and comes out the same.
    """
    done = finished(store.finished()) if store else {}
    order = sorted(requests, key=lambda r: (-_size(r), r.doc_id, r.sample_idx))
    bar = progress.add_task(job.title, total=len(requests)) if progress else None
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        missing = [r for r in batch if r.key not in done]
        if missing:
            asked = batch if source.makes_whole_batches else missing
            batch_seed = int(asked[0].key[:12], 16) + job.seed
            made = source.complete([r.messages for r in asked], job.generation, batch_seed)
            fresh = {r.key: found for r, found in zip(asked, made, strict=True)}
            done.update({r.key: fresh[r.key] for r in missing})
            if store is not None:
                store.append([stored(r, fresh[r.key]) for r in missing])
        if progress is not None and bar is not None:
            progress.advance(bar, len(batch))
    return done


def _size(request: Request) -> int:
    """What orders prompts by length without tokenizing them: pixels over 400 plus characters."""
    size = 0
    for turn in request.messages:
        blocks = (
            turn["content"] if isinstance(turn["content"], list) else [{"text": turn["content"]}]
        )
        for block in blocks:
            image = block.get("image")
            size += (
                len(block.get("text", "")) if image is None else image.width * image.height // 400
            )
    return size


def _settings(job: Job, source: Source) -> dict[str, Any]:
    return {
        "gen_config": {**asdict(job.generation), "stop": list(job.generation.stop)},
        "seed": job.seed,
        "prompts": asdict(job.task.prompts),
        "prompt_template_sha": digest(asdict(job.task.prompts)),
        "answer_type": job.task.answer_type,
        "scorer": dict(job.task.scorer),
        "model_hash": source.fingerprint,
        "rows": job.task.rows,
        "num_samples": job.num_samples,
        "paper": dict(job.task.paper),
        **source.settings,
    }


def _checked_settings(generation: Mapping[str, Any]) -> Mapping[str, Any]:
    known = set(asdict(Generation()))
    unknown = sorted(generation.keys() - known)
    if unknown:
        raise ValueError(
            f"unknown generation settings {unknown}; known: {', '.join(sorted(known))}"
        )
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
