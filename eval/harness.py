"""Runs a benchmark: requests -> completions -> scores -> Results.

Work is shared by question over the processes of `accelerate launch` or `torchrun`; every process
returns the same Results and the first one writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import Progress

from dopd_vlm.config import ModelConfig
from dopd_vlm.models import Policy, load_policy, process_state
from dopd_vlm.types import Sample, ViewName

from .aggregate import aggregate
from .benchmarks import Benchmark, Generation, load_benchmark
from .generators import Completion, Generate, halving, local_generator
from .requests import Request, digest, make_requests, model_fingerprint
from .results import Results, write_results
from .scorers import Score, Scorer, score, scorer
from .store import Record, SampleStore

SCORER_ERRORS = (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError, OSError)
VIEWS: tuple[ViewName, ...] = ("plain", "privileged")


def evaluate(
    model: str | Policy,
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
        model: a folder or hub id, or a loaded model with its processor.
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
    state = process_state()
    settings = replace(task.generation, **_checked_settings(generation or {}))
    complete, fingerprint, name = _generator(model, generate, template_kwargs, state)
    requests = make_requests(
        task, chosen, view=view, generation=settings, model_hash=fingerprint, seed=seed
    )
    store = SampleStore(Path(out), task.name, view, state.process_index) if out else None
    mine = [r for r in requests if r.doc_id % state.num_processes == state.process_index]
    completions = _complete(
        mine, complete, settings, seed, batch_size, store, progress, f"{task.name} {view}"
    )
    count = _counter(task)
    records = [_record(r, chosen[r.doc_id], completions[r.key], count, view) for r in mine]
    if state.num_processes > 1:
        records = sorted(gather_object(records), key=lambda r: (r["doc_id"], r["sample_idx"]))
    found = aggregate(task, view, name, chosen, records)
    found = replace(
        found,
        samples_path=store.path if store else None,
        settings=_settings(task, settings, fingerprint, seed, template_kwargs, len(samples or ())),
    )
    if store is not None and state.is_main_process:
        store.finish(records)
        write_results([found], Path(out or "."), f"results_{task.name}__{view}.json")
    state.wait_for_everyone()
    return found


def _counter(task: Benchmark) -> Scorer:
    if task.answer_type != "row":
        return scorer(task.answer_type, **task.scorer)
    options = {"number": dict(task.scorer)}
    return lambda text, sample: score(text, sample, **options.get(sample.answer_type, {}))


def _generator(
    model: str | Policy,
    generate: Generate | None,
    template_kwargs: Mapping[str, Any] | None,
    state: PartialState,
) -> tuple[Generate, str, str]:
    """(generator, model hash, model name)."""
    if generate is not None:
        name = model if isinstance(model, str) else model.path
        return halving(generate), digest(name), name
    if isinstance(model, str):
        model = load_policy(ModelConfig(path=model), device=state.device or "cpu", trainable=False)
    fingerprint = model_fingerprint(model, template_kwargs)
    return halving(local_generator(model, template_kwargs)), fingerprint, model.path


def _complete(
    requests: Sequence[Request],
    complete: Generate,
    generation: Generation,
    seed: int,
    batch_size: int,
    store: SampleStore | None,
    progress: Progress | None,
    title: str,
) -> dict[str, Completion]:
    """Key -> completion of all requests; what the store holds is not made again.

    Batches hold prompts of like length and are a function of the requests alone, each seeded by its
    first key: a batch that was half written is made anew, and comes out the same.
    """
    done = {key: _completion(record) for key, record in (store.finished() if store else {}).items()}
    order = sorted(requests, key=lambda r: (_size(r), r.doc_id, r.sample_idx))
    bar = progress.add_task(title, total=len(requests)) if progress else None
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        missing = [r for r in batch if r.key not in done]
        if missing:
            batch_seed = int(batch[0].key[:12], 16) + seed
            made = complete([r.messages for r in batch], generation, batch_seed)
            fresh = {r.key: found for r, found in zip(batch, made, strict=True)}
            done.update({r.key: fresh[r.key] for r in missing})
            if store is not None:
                store.append([_stored(r, fresh[r.key]) for r in missing])
        if progress is not None and bar is not None:
            progress.advance(bar, len(batch))
    if store is not None:
        store.close()
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


def _stored(request: Request, completion: Completion) -> Record:
    return {
        "key": request.key,
        "doc_id": request.doc_id,
        "uid": request.uid,
        "sample_idx": request.sample_idx,
        "arguments": {"gen_args_0": {"arg_0": completion.prompt}},
        "resps": [[completion.text]],
        "finish_reason": completion.finish_reason,
        "num_tokens": completion.num_tokens,
        "prompt_hash": request.prompt_hash,
        "image_hash": request.image_hash,
    }


def _completion(record: Record) -> Completion:
    return Completion(
        text=record["resps"][0][0],
        finish_reason=record["finish_reason"],
        num_tokens=record["num_tokens"],
        prompt=record["arguments"]["gen_args_0"]["arg_0"],
    )


def _record(
    request: Request, sample: Sample, completion: Completion, count: Scorer, view: ViewName
) -> Record:
    """The finished line of one completion: lm-eval's names, and ours."""
    found = _scored(count, completion.text, sample)
    doc = {
        "question": sample.question,
        "choices": dict(sample.choices) if sample.choices else None,
        "answer_type": sample.answer_type,
    }
    return {
        **_stored(request, completion),
        "view": view,
        "doc": doc,
        "target": sample.answer,
        "filtered_resps": [found.extracted],
        "filter": found.rule,
        "metrics": ["accuracy"],
        "doc_hash": digest(doc),
        "target_hash": digest(sample.answer),
        "accuracy": found.correct,
    }


def _scored(count: Scorer, text: str, sample: Sample) -> Score:
    try:
        return count(text, sample)
    except SCORER_ERRORS as error:
        return Score(correct=0.0, extracted=None, rule=f"error: {type(error).__name__}: {error}")


def _settings(
    task: Benchmark,
    generation: Generation,
    fingerprint: str,
    seed: int,
    template_kwargs: Mapping[str, Any] | None,
    num_samples: int,
) -> dict[str, Any]:
    return {
        "gen_config": asdict(generation),
        "seed": seed,
        "prompts": asdict(task.prompts),
        "prompt_template_sha": digest(asdict(task.prompts)),
        "template_kwargs": dict(template_kwargs or {}),
        "answer_type": task.answer_type,
        "scorer": dict(task.scorer),
        "model_hash": fingerprint,
        "rows": task.rows,
        "num_samples": num_samples,
        "paper": dict(task.paper),
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
