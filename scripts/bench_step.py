"""`bench.py step`: seconds per phase of whole optimizer steps, ours and those of TRL's trainer.

    python scripts/bench.py step                          # SmolLM2-135M, opd and dopd against TRL
    python scripts/bench.py step --model embedded_vl --repeats 5
    python scripts/bench.py step --variants dopd --repeats 1 --profile runs/bench/trace.json

All variants see the same prompts, batch, completion lengths, micro-batches and teacher. They take
turns inside one process and each step is timed; the table gives medians. Completions never end
before --tokens, so that tokens per second compare equal work; --natural lets them end.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import build
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.assembly import build_state
from dopd_vlm.config import (
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
    read_config,
)
from dopd_vlm.models import Policy
from dopd_vlm.state import EncodedSample, TrainState, encode_sample
from dopd_vlm.step import Clock, train_step

RECIPES = Path(__file__).parent / "recipes"
MODELS = {"smollm2": "demo_text", "embedded_text": "demo_text", "embedded_vl": "demo"}
"""Model -> recipe that gives the prompts."""
SMOLLM2 = Path("~/.cache/dopd_vlm/smollm2-135m-instruct").expanduser()
PHASES = ("rollout", "score", "loss", "step")
TEACHER_NOISE = 0.02
"""SmolLM2's teacher is the student plus noise of this share of each weight's spread: one model would have no gap."""


def main(argv: list[str]) -> None:
    """Parses and measures."""
    parser = bench_parser("bench.py step", __doc__)
    add = parser.add_argument
    add("--variants", nargs="+", default=["opd", "dopd", "trl"], help="methods of ours, and trl")
    add("--micro", type=int, default=8, help="sequences per forward and backward")
    add("--profile", type=Path, help="write a torch profiler trace of one step of each of ours")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    report = bench_step(args)
    Console(width=140).print(table(report))
    write_json(args, "step", report)


def bench_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """What `step` and `rollout` are both told."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=list(MODELS), default="smollm2")
    add("--prompts", type=int, default=16, help="prompts a step")
    add("--generations", type=int, default=4, help="completions a prompt")
    add("--tokens", type=int, default=64, help="longest completion")
    add("--repeats", type=int, default=3, help="timings of each variant, after one untimed")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--natural", action="store_true", help="let completions end at EOS")
    add("--smollm2", type=Path, default=SMOLLM2, help="the folder scripts/make_smollm2.py made")
    add("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON")
    return parser


def write_json(args: argparse.Namespace, name: str, report: dict) -> None:
    """OUT/NAME_MODEL.json, and where it lies."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}_{args.model}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{json.dumps(report['machine'])}\nwritten: {path}")


def bench_step(args: argparse.Namespace) -> dict:
    """Seconds per phase of every variant, one list entry a timed step."""
    ours = [name for name in args.variants if name != "trl"]
    runs: dict[str, Callable[[], dict[str, float]]] = {}
    for name in ours:
        state = make_state(args, name)
        samples = encoded(args, state)
        runs[name] = lambda state=state, samples=samples: our_step(state, samples)
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in args.variants}

    def round_of_ours() -> None:
        for name, run in runs.items():
            steps[name].append(run())

    if "trl" in args.variants:
        from bench_trl import trl_steps

        state = make_state(args, "opd")
        steps["trl"] = trl_steps(args, state, encoded(args, state), before_each=round_of_ours)
    else:
        for _ in range(args.repeats + 1):
            round_of_ours()
    if args.profile:
        for name, run in runs.items():
            profile(run, args.profile.with_stem(f"{args.profile.stem}_{name}"))
    return {
        "machine": machine(args),
        "settings": {k: v for k, v in vars(args).items() if isinstance(v, int | str | list)},
        "steps": {name: timed[1:] for name, timed in steps.items()},
    }


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
    """Models and optimizer of one variant."""
    state = build_state(recipe(args, method), Accelerator(cpu=True), Path("runs/bench"))
    if args.model == "smollm2" and state.teacher is not None:
        add_noise_(state.teacher)
    if not args.natural:
        for policy in (state.student, state.teacher):
            never_end_(policy)
    return state


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


def our_step(state: TrainState, samples: list[EncodedSample]) -> dict[str, float]:
    """Seconds per phase and the number of completion tokens of one step."""
    clock = Clock()
    output = train_step(state, samples, clock)
    state.step += 1
    shares = {k: v for k, v in output.metrics.items() if k.startswith("share/")}
    return {**clock.seconds, "tokens": output.metrics["count/completion_tokens"], **shares}


def profile(run: Callable[[], object], path: Path) -> None:
    """A Chrome trace of one call, and its costliest operators on the console."""
    with torch.profiler.profile() as profiler:
        run()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    print(f"{path}\n{profiler.key_averages().table(sort_by='self_cpu_time_total', row_limit=15)}")


def table(report: dict) -> Table:
    """Median seconds per phase, tokens per second and their ratio to TRL's."""
    made = Table(title="seconds per optimizer step, medians")
    for column in ("variant", *PHASES, "total", "min..max", "tokens/s", "x TRL"):
        made.add_column(column, justify="left" if column == "variant" else "right")
    speeds = {name: speed(steps) for name, steps in report["steps"].items()}
    for name, steps in report["steps"].items():
        phases = {p: statistics.median(s.get(p, 0.0) for s in steps) for p in PHASES}
        totals = [sum(s.get(p, 0.0) for p in PHASES) for s in steps]
        ratio = f"{speeds[name] / speeds['trl']:.2f}" if "trl" in speeds else "-"
        made.add_row(
            name,
            *(f"{value:.3f}" for value in phases.values()),
            f"{statistics.median(totals):.3f}",
            f"{min(totals):.2f}..{max(totals):.2f}",
            f"{speeds[name]:.1f}",
            ratio,
        )
    return made


def speed(steps: list[dict[str, float]]) -> float:
    """Completion tokens per second of the median step."""
    return statistics.median(s["tokens"] / sum(s.get(p, 0.0) for p in PHASES) for s in steps)


def machine(args: argparse.Namespace) -> dict:
    """What the numbers depend on."""
    names = ("torch", "transformers", "trl")
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": args.threads,
        **{name: version(name) for name in names},
    }
