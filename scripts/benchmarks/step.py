"""`bench.py step`: seconds per phase of whole optimizer steps, ours and those of TRL's trainer.

    dopd bench step                          # SmolLM2-135M, opd and dopd against TRL
    dopd bench step --model embedded_vl --repeats 5 --tokens 48 --micro 64
    dopd bench step --variants dopd --repeats 1 --profile runs/bench/trace.json

A variant is a method of ours; `opd_full_kl`, ours with TRL's loss, the reverse KL over the whole
vocabulary; either followed by `-pixels`, where every forward takes its images through the vision
tower itself; or `trl`. All see the same prompts, batch, completion lengths, micro-batches and
teacher. They take turns inside one process and each step is timed; the table gives medians, and
timings of an earlier run on the same terms that are in --out count in. Ctrl-C or SIGTERM ends it
with what was timed. Completions never end before --tokens, so that tokens per second compare equal
work; --natural lets them end.
"""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.config import (
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
    read_config,
)
from dopd_vlm.methods import VANILLA, configured_method, uniform
from dopd_vlm.models.policy import Policy
from dopd_vlm.scripts.benchmarks.timings import (
    MODELS,
    Timings,
    bench_parser,
    report_of,
    stoppable,
    table,
    write,
)
from dopd_vlm.scripts.wiring import samples as build
from dopd_vlm.training.build import build_state
from dopd_vlm.training.samples import EncodedSample, encode_sample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import Clock, train_step

RECIPES = Path(__file__).parents[1] / "recipes"
PHASES = ("rollout", "score", "loss", "step")
TEACHER_NOISE = 0.02
"""SmolLM2's teacher is the student plus noise of this share of each weight's spread: one model would have no gap."""
FULL_KL, PIXELS = "opd_full_kl", "-pixels"


def main(argv: list[str]) -> None:
    """Parses and measures."""
    parser = bench_parser("bench.py step", __doc__)
    add = parser.add_argument
    variants = ["opd", FULL_KL, "dopd", "trl"]
    add("--variants", nargs="+", default=variants, help=f"default: {' '.join(variants)}")
    add("--micro", type=int, default=8, help="sequences per forward and backward")
    add("--profile", type=Path, help="write a torch profiler trace of one step of each of ours")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    report = write(args, "step", report_of(args, bench_step(args), {}))
    Console(width=140).print(table(report, "seconds per optimizer step", PHASES, "trl"))


def bench_step(args: argparse.Namespace) -> Timings:
    """Seconds per phase of every variant, one list entry a timed step."""
    ours = [name for name in args.variants if name != "trl"]
    state = make_state(args, "dopd")
    samples = encoded(args, state)
    runs = {name: runner(variant_of(state, name), samples, name) for name in ours}
    steps: Timings = {name: [] for name in args.variants}

    def round_of_ours() -> None:
        for name, run in runs.items():
            steps[name].append(run())

    if "trl" in args.variants:
        from dopd_vlm.scripts.benchmarks.trl_step import trl_steps

        steps["trl"] = trl_steps(args, make_state(args, "opd"), samples, before_each=round_of_ours)
    else:
        with stoppable():
            for _ in range(args.repeats + 1):
                round_of_ours()
    if args.profile:
        for name, run in runs.items():
            profile(run, args.profile.with_stem(f"{args.profile.stem}_{name}"))
    return {name: timed[1:] for name, timed in steps.items()}


def recipe(args: argparse.Namespace, method: str) -> RunConfig:
    """The model's demo recipe with the sizes asked for."""
    config = build.resolved(read_config(RECIPES / f"{MODELS[args.model]}.yaml"))
    if args.model == "smollm2":
        model = ModelConfig(path=str(args.smollm2))
        config = replace(config, student=model, teacher=model)
    return replace(
        config,
        data=replace(config.data, limit=args.prompts),
        precision="float32",
        rollout=RolloutConfig(num_generations=args.generations, max_completion_length=args.tokens),
        method=MethodConfig(name=method),
        optim=OptimConfig(batch_size=args.prompts, micro_batch_size=args.micro, learning_rate=1e-6),
    )


def make_state(args: argparse.Namespace, method: str) -> TrainState:
    """Models and optimizer."""
    state = build_state(recipe(args, method), Accelerator(cpu=True), Path("runs/bench"))
    if args.model == "smollm2" and state.teacher is not None:
        add_noise_(state.teacher)
    if not args.natural:
        for policy in (state.student, state.teacher):
            never_end_(policy)
    return state


def variant_of(state: TrainState, name: str) -> TrainState:
    """The same models and optimizer under the variant's method.

    Raises ValueError for an unknown name.
    """
    name = name.removesuffix(PIXELS)
    if name == FULL_KL:
        return replace(state, method=uniform(name, replace(VANILLA, top_k=None)), self_target=None)
    config = replace(state.config, method=MethodConfig(name=name))
    method = configured_method(config)
    return replace(
        state,
        config=config,
        method=method,
        teacher=state.teacher if method.needs_teacher else None,
        self_target=state.student if method.needs_self_target else None,
    )


def runner(
    state: TrainState, samples: list[EncodedSample], name: str
) -> Callable[[], dict[str, float]]:
    """One step of the variant at each call: seconds per phase, completion tokens, regime shares."""

    def run() -> dict[str, float]:
        clock = Clock()
        with without_features() if name.endswith(PIXELS) else contextlib.nullcontext():
            output = train_step(state, samples, clock)
        state.step += 1
        shares = {k: v for k, v in output.metrics.items() if k.startswith("share/")}
        return {**clock.seconds, "tokens": output.metrics["count/completion_tokens"], **shares}

    return run


def without_features() -> contextlib.AbstractContextManager[object]:
    """Where each forward takes its images through the tower."""
    return patch("dopd_vlm.models.image_features.can_share_features", return_value=False)


def add_noise_(policy: Policy) -> None:
    """Makes another model of the same quality of it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.ndim == 2:
                noise = torch.empty_like(weight).normal_(generator=generator)
                weight += noise * (TEACHER_NOISE * weight.std())


def never_end_(policy: Policy | None) -> None:
    """Completions of full length: a token that is never sampled ends them."""
    if policy is None:
        return
    vocabulary = policy.tokenizer.get_vocab()
    token = next(t for t in ("<|video_pad|>", "<repo_name>", "<unk>") if t in vocabulary)
    policy.model.generation_config.eos_token_id = vocabulary[token]  # type: ignore[union-attr]
    policy.tokenizer.eos_token = token


def encoded(args: argparse.Namespace, state: TrainState) -> list[EncodedSample]:
    """The recipe's first rows."""
    samples = build.training_samples(state.config.data)
    return [encode_sample(state, samples[i]) for i in range(args.prompts)]


def profile(run: Callable[[], object], path: Path) -> None:
    """A Chrome trace of one call, and its phases and costliest operators on the console."""
    with torch.profiler.profile() as profiler:
        run()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    averages = profiler.key_averages()
    print(f"{path}\n{averages.table(sort_by='self_cpu_time_total', row_limit=12)}")
    for event in averages:
        if event.key.startswith("step/"):
            print(f"{event.key:14s} {event.cpu_time_total / 1e6:.3f} s")
