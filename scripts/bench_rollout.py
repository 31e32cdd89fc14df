"""`bench.py rollout`: tokens per second of sampling, ours, Hugging Face `generate` and `generate_batch`.

    python scripts/bench.py rollout                        # SmolLM2-135M
    python scripts/bench.py rollout --model embedded_vl

The same prompts, numbers and lengths; variants take turns. `generate_batch` is transformers'
continuous batching: it takes token ids alone, so that prompts with pictures are left out of it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from bench_step import bench_parser, encoded, machine, make_state, write_json
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.encode import EncodedPrompt, pad_prompts
from dopd_vlm.features import picture_inputs
from dopd_vlm.models import Policy
from dopd_vlm.step import roll_out


def main(argv: list[str]) -> None:
    """Parses and measures."""
    args = bench_parser("bench.py rollout", __doc__).parse_args(argv)
    args.micro = 8
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    report = {"machine": machine(args), "variants": bench_rollout(args)}
    Console(width=120).print(table(report["variants"]))
    write_json(args, "rollout", report)


def bench_rollout(args: argparse.Namespace) -> dict[str, dict]:
    """{variant: {tokens, seconds}} or {variant: {error}}."""
    state = make_state(args, "opd")
    samples = encoded(args, state)
    prompts = [sample.prompts["plain"] for sample in samples]
    listed = [prompt for prompt in prompts for _ in range(args.generations)]
    variants: dict[str, Callable[[], int]] = {
        "ours": lambda: sum(len(r.completion_ids) for r in roll_out(state, samples)),
        "generate": lambda: by_generate(state.student, listed, args.tokens),
        "generate_batch": lambda: by_generate_batch(state.student, listed, args.tokens),
    }
    if any(prompt.pictures for prompt in prompts):
        del variants["generate_batch"]
    found: dict[str, dict] = {name: {"tokens": 0, "seconds": []} for name in variants}
    for repeat in range(args.repeats + 1):
        for name, call in variants.items():
            start = time.perf_counter()
            tokens = call()
            if repeat:
                found[name]["seconds"].append(time.perf_counter() - start)
                found[name]["tokens"] = tokens
    return found


def settings(policy: Policy, num_tokens: int) -> GenerationConfig:
    """Plain sampling at temperature 1."""
    return GenerationConfig(
        max_new_tokens=num_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(policy.eos_ids),
        pad_token_id=policy.pad_id,
    )


@torch.no_grad()
def by_generate(policy: Policy, prompts: list[EncodedPrompt], num_tokens: int) -> int:
    """Tokens that Hugging Face `generate` sampled."""
    inputs = {
        **pad_prompts(prompts, pad_id=policy.pad_id),
        **picture_inputs(policy, prompts, None),
    }
    config = settings(policy, num_tokens)
    ids = policy.model.generate(**inputs, generation_config=config)  # type: ignore[operator]
    return ids[:, inputs["input_ids"].shape[1] :].numel()


def by_generate_batch(policy: Policy, prompts: list[EncodedPrompt], num_tokens: int) -> int:
    """Tokens that transformers' continuous batching sampled."""
    outputs = policy.model.generate_batch(  # type: ignore[operator]
        inputs=[prompt.input_ids.tolist() for prompt in prompts],
        generation_config=settings(policy, num_tokens),
    )
    return sum(len(output.generated_tokens) for output in outputs.values())


def table(variants: dict[str, dict]) -> Table:
    """Median seconds and tokens per second."""
    made = Table(title="sampling, medians")
    for column in ("variant", "tokens", "seconds", "min..max", "tokens/s"):
        made.add_column(column, justify="left" if column == "variant" else "right")
    for name, found in variants.items():
        seconds = found["seconds"]
        median = statistics.median(seconds)
        made.add_row(
            name,
            str(found["tokens"]),
            f"{median:.2f}",
            f"{min(seconds):.2f}..{max(seconds):.2f}",
            f"{found['tokens'] / median:.1f}",
        )
    return made
