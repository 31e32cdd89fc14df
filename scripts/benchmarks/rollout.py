"""`bench.py rollout`: tokens per second of sampling, ours, Hugging Face `generate` and `generate_batch`.

    dopd bench rollout --prompts 8 --tokens 32   # SmolLM2-135M
    dopd bench rollout --model embedded_vl

The same prompts, numbers and lengths; variants take turns; timings of an earlier run on the same
terms that are in --out count in. `generate_batch` is transformers' continuous batching. It takes
token ids alone, and would read the places of images as words. Left to itself it takes most of the
machine's memory for its cache, and half a minute to do so on CPU: it gets room for what comes.
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from dopd_vlm.models.encoder import EncodedPrompt, pad_prompts
from dopd_vlm.models.image_features import StepFeatures, image_inputs
from dopd_vlm.models.policy import Policy
from dopd_vlm.scripts.benchmarks.step import encoded, make_state
from dopd_vlm.scripts.benchmarks.timings import (
    Timings,
    bench_parser,
    report_of,
    stoppable,
    table,
    write,
)
from dopd_vlm.training.step import roll_out

PAGE = 256
"""Tokens of a sequence's keys and values that `generate_batch` keeps together."""


def main(argv: list[str]) -> None:
    """Parses and measures."""
    args = bench_parser("bench.py rollout", __doc__).parse_args(argv)
    args.micro = 8
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    report = write(args, "rollout", report_of(args, *bench_rollout(args)))
    Console(width=140).print(table(report, "seconds of sampling", ("rollout",), "generate"))


def bench_rollout(args: argparse.Namespace) -> tuple[Timings, dict[str, str]]:
    """Seconds of each variant, one entry a timed call, and why what has none has none."""
    state = make_state(args, "opd")
    samples = encoded(args, state)
    prompts = [sample.prompts["plain"] for sample in samples]
    listed = [prompt for prompt in prompts for _ in range(args.generations)]
    variants: dict[str, Callable[[], int]] = {
        "ours": lambda: sum(
            len(r.completion_ids) for r in roll_out(state, samples, StepFeatures())
        ),
        "generate": lambda: by_generate(state.student, listed, args.tokens),
        "generate_batch": lambda: by_generate_batch(state.student, listed, args.tokens),
    }
    failed: dict[str, str] = {}
    if any(prompt.image_tensors for prompt in prompts):
        del variants["generate_batch"]
        failed["generate_batch"] = "takes no images"
    timings: Timings = {name: [] for name in variants}
    with stoppable():
        for repeat in range(args.repeats + 1):
            for name, call in variants.items():
                start = time.perf_counter()
                tokens = call()
                seconds = time.perf_counter() - start
                if repeat:
                    timings[name].append({"rollout": seconds, "tokens": float(tokens)})
    return timings, failed


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
        **image_inputs(policy, prompts, None),
    }
    config = settings(policy, num_tokens)
    ids = policy.model.generate(**inputs, generation_config=config)  # type: ignore[operator]
    return ids[:, inputs["input_ids"].shape[1] :].numel()


def by_generate_batch(policy: Policy, prompts: list[EncodedPrompt], num_tokens: int) -> int:
    """Tokens that transformers' continuous batching sampled, with their log-probs, as ours has them."""
    lengths = [len(prompt.input_ids) for prompt in prompts]
    outputs = policy.model.generate_batch(  # type: ignore[operator]
        inputs=[prompt.input_ids.tolist() for prompt in prompts],
        generation_config=settings(policy, num_tokens),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=sum(-(-(length + num_tokens) // PAGE) for length in lengths) + 1,
            max_batch_tokens=sum(lengths),
            return_logprobs=True,
        ),
    )
    return sum(len(output.generated_tokens) for output in outputs.values())
