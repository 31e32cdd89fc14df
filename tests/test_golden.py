"""A golden run: 20 steps of DOPD on tiny random models against committed numbers.

    python tests/test_golden.py --write     # after a change of maths that is meant; look at the difference

Everything is float64 and the weights come from NumPy by name, so that another CPU, another torch or
another order of initialisation changes the last digits only; what is left are the tables of exp and
log behind torch's draws. A refactor keeps the numbers; another regime weight or trim does not.
"""

import json
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from dopd_vlm.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.models.policy import Policy
from dopd_vlm.train import train

GOLDEN = Path(__file__).parent / "golden" / "dopd.json"
NUMBERS = ("loss", "optim/grad_norm", "threshold/gap", "threshold/q_self", "threshold/q_teacher")
COUNTS = ("share/lh", "share/ll", "share/ht", "share/hs", "count/completion_tokens")
TOLERANCE, LATE_TOLERANCE = 1e-6, 1e-3
"""Relative, for the first five steps and for the rest: rounding grows with each step, and a token
drawn differently, as unlikely as it is, would show from its step on. What a change of maths does is
larger by orders: see the module's docstring."""
STEPS, EARLY = 20, 5


def fill_(policy: Policy, seed: int) -> Policy:
    """The policy with weights that depend on parameter names, shapes and the seed alone."""
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.from_numpy(0.2 * draw.standard_normal(parameter.shape)))
    return policy


def save(policy: Policy, folder: Path) -> str:
    policy.model.save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    return str(folder)


def run(folder: Path) -> list[dict[str, float]]:
    """The numbers of every step."""
    student = fill_(tiny.vl_policy(dtype=torch.float64), 0)
    teacher = fill_(tiny.vl_policy(hidden_size=48, dtype=torch.float64), 1)
    config = RunConfig(
        student=ModelConfig(path=save(student, folder / "s"), dtype="float64"),
        teacher=ModelConfig(path=save(teacher, folder / "t"), dtype="float64"),
        data=DataConfig(train="memory"), name="run", output_dir=str(folder), precision="float32",
        rollout=RolloutConfig(num_generations=2, max_completion_length=7),
        method=MethodConfig(self_target="ema", top_k=16),
        optim=OptimConfig(
            batch_size=3, micro_batch_size=4, learning_rate=1e-3, max_steps=STEPS, warmup_steps=2, weight_decay=0.01
        ),
    )  # fmt: skip
    samples = [tiny.vl_sample(f"row{i}", seed=i) for i in range(4)]
    # One row without an image, so that both kinds meet in a batch.
    result = train(config, [*samples, replace(tiny.text_sample("row4"), answer="2")])
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "loss" in line]
    return [{name: step[name] for name in (*NUMBERS, *COUNTS)} for step in steps]


def test_twenty_steps_give_the_committed_numbers(tmp_path):
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = run(tmp_path)
    assert len(found) == len(expected) == STEPS
    for step, (ours, golden) in enumerate(zip(found, expected, strict=True), start=1):
        tolerance = TOLERANCE if step <= EARLY else LATE_TOLERANCE
        for name in NUMBERS:
            assert ours[name] == pytest.approx(golden[name], rel=tolerance), (step, name)
        for name in COUNTS:
            assert ours[name] == pytest.approx(golden[name], abs=1e-9), (step, name)


def test_the_committed_run_exercises_what_it_guards():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for name in ("share/lh", "share/ll", "share/ht", "share/hs"):
        assert sum(step[name] > 0 for step in golden) > STEPS // 2, name


def write() -> None:
    """Replaces the committed numbers by those of this code."""
    with tempfile.TemporaryDirectory() as folder:
        steps = run(Path(folder))
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(step) for step in steps)
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
