"""The memory report: the counter against sums by hand, and the prediction against a measured process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
import torch
from torch import nn

from dopd_vlm.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.memory.dry_step import empty_policy
from dopd_vlm.memory.known_models import known_model
from dopd_vlm.memory.meta_tensors import LiveBytes
from dopd_vlm.memory.predict import Device, MemoryReport, Phase, predict
from dopd_vlm.methods import configured_method
from dopd_vlm.scripts.wiring import memory_table
from dopd_vlm.training.samples import encoded_views
from dopd_vlm.types import View

ROOT = Path(__file__).parent.parent

SMOLLM2 = Path("~/.cache/dopd_vlm/smollm2-135m-instruct").expanduser()


def test_live_bytes_of_a_linear_chain_are_what_autograd_keeps():
    with torch.device("meta"):
        first, second = nn.Linear(64, 256, bias=False), nn.Linear(256, 32, bias=False)
        rows = torch.empty(1000, 64)
    with LiveBytes() as live:
        hidden = first(rows)
        output = second(hidden.tanh())
        # tanh keeps its own output, which the second product keeps too; `hidden` is held by name.
        assert live.now == 4 * 1000 * (256 + 256 + 32)
        del hidden
        assert live.now == 4 * 1000 * (256 + 32)
        output.backward(torch.empty_like(output))
    assert live.peak >= 4 * 1000 * (2 * 256 + 2 * 32)
    del output
    assert live.now == 4 * (64 * 256 + 256 * 32), "the gradients stay"


def test_a_view_and_a_result_in_place_cost_nothing():
    with LiveBytes() as live:
        rows = torch.empty(100, 10, device="meta")
        rows.view(10, 100).add_(1.0)
        assert live.now == live.peak == 4000


def run(mode: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "tests" / "process_memory.py"), mode, *arguments]
    # So that malloc gives freed memory back, and resident memory is live tensors: what is kept beside them
    # is a matter of the allocator, and grows with the order of sizes that a step asks for.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


WIDE = ("optim.batch_size=64", "optim.micro_batch_size=256", "optim.score_batch_size=256")
LONG = ("rollout.num_generations=4", "rollout.max_completion_length=48", "optim.batch_size=8")
CASES = {
    "vlm-64": ("demo",),
    "vlm-16": ("demo", "optim.micro_batch_size=16"),
    "vlm-256": ("demo", *WIDE),
    "vlm-long": ("demo", "rollout.max_completion_length=160"),
    "vlm-live": ("demo", "method.self_target=live"),
    "vlm-checkpointing": ("demo", "optim.gradient_checkpointing=true"),
    "vlm-bfloat16": ("demo", "precision=bfloat16"),
    "text-64": ("demo_text", "optim.batch_size=32", "rollout.max_completion_length=128"),
    "smollm2-opd": ("demo_llm", "method.name=opd", *LONG),
    "smollm2-dopd": ("demo_llm", "method.name=dopd", *LONG),
    "smollm2-frozen": ("demo_llm", "method.name=dopd", "method.self_target=frozen", *LONG),
    "smollm2-checkpointing": ("demo_llm", "optim.gradient_checkpointing=true", *LONG),
    "smollm2-lora": ("demo_llm", "method.name=dopd", "lora.rank=16", *LONG),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_predicted_peak_is_within_a_fifth_of_the_measured_one(case):
    recipe, *overrides = CASES[case]
    if recipe == "demo_llm" and not SMOLLM2.is_dir():
        pytest.skip("SmolLM2 is not there: scripts/make/smollm2.py")
    arguments = (f"scripts/recipes/{recipe}.yaml", *overrides)
    measured, predicted = run("measure", *arguments), run("predict", *arguments)
    assert predicted["peak"] == pytest.approx(measured["peak"], rel=0.2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.save_pair(tmp_path_factory.mktemp("models"))


CPU = Device(kind="cpu", memory=1 << 34)


def report_of(
    models: Path, *, method: str = "dopd", tokens: int = 32, generations: int = 2,
    device: Device = CPU, **optim,
) -> MemoryReport:  # fmt: skip
    sizes = {"batch_size": 2, "micro_batch_size": 2, "score_batch_size": 4}
    config = RunConfig(
        student=ModelConfig(path=str(models / "s")), teacher=ModelConfig(path=str(models / "t")),
        data=DataConfig(train="x"), rollout=RolloutConfig(max_completion_length=tokens, num_generations=generations),
        method=MethodConfig(name=method), optim=OptimConfig(**{**sizes, **optim}),
    )  # fmt: skip
    policy = tiny.vl_policy(0)
    names = configured_method(config).views
    further = dict.fromkeys(names[2:], View(context="wrong"))
    samples = [replace(tiny.vl_sample(f"row{i}"), views=further) for i in range(2)]
    views = [encoded_views(config, policy.encoder, sample, names) for sample in samples]
    prompts = {view: [v[view] for v in views] for view in names}
    return predict(config, configured_method(config), prompts, device=device)


def test_further_views_are_predicted_and_the_first_student_is_a_copy(models):
    report_of(models, method="rlcsd", tokens=4, generations=1)
    sizes = [
        sum(p.numel() for p in tiny.vl_policy(0, hidden_size=h).model.parameters())
        for h in (32, 32, 48)
    ]
    loss = report_of(models, method="exopd", tokens=4, generations=1).phases["loss"]
    assert loss.weights == pytest.approx(4 * sum(sizes), rel=0.01)


def test_weights_gradients_and_moments_are_those_of_the_models(models):
    student, teacher = (
        sum(p.numel() for p in tiny.vl_policy(0, hidden_size=h).model.parameters())
        for h in (32, 48)
    )
    loss = report_of(models).phases["loss"]
    assert loss.gradients == 4 * student and loss.optimizer == 8 * student
    assert loss.weights == pytest.approx(4 * (student + teacher), rel=0.01)
    on_gpu = report_of(models, device=Device(kind="cuda", memory=1 << 34)).phases["loss"]
    assert on_gpu.weights == pytest.approx(4 * student + 2 * teacher, rel=0.01)
    assert report_of(models, method="priv_s_to_s").phases["loss"].weights == pytest.approx(
        4 * student, rel=0.01
    )


def work(models: Path, **sizes) -> dict[str, int]:
    phases = report_of(models, **sizes).phases
    return {name: p.kept + p.activations + p.chunk for name, p in phases.items()}


def test_more_of_anything_takes_more(models):
    base, longer, wider = work(models), work(models, tokens=64), work(models, micro_batch_size=4)
    assert longer["loss"] > 1.2 * base["loss"] and longer["rollout"] > base["rollout"]
    assert wider["loss"] > 1.2 * base["loss"] and wider["rollout"] == base["rollout"]
    assert work(models, method="opd")["score"] < base["score"]


def test_a_micro_batch_is_no_larger_than_what_is_scored_at_once(models):
    # What targets say is cut into micro-batches, so that score_batch_size bounds both.
    one, other = (work(models, micro_batch_size=m, score_batch_size=2) for m in (2, 4))
    assert one["loss"] == pytest.approx(other["loss"], rel=0.02)


def test_a_large_batch_is_on_the_line_through_two_small_ones(models):
    # 6 prompts run as 2 and 4, or in one piece where 12 sequences are scored in pieces of 4 just so.
    phases = report_of(models, batch_size=6).phases
    with patch("dopd_vlm.memory.predict.LARGE", 100):
        whole = report_of(models, batch_size=6).phases
    for name in ("score", "loss", "step"):
        assert phases[name].total == pytest.approx(whole[name].total, rel=0.02), name


def test_the_paper_s_models_are_known_without_their_files():
    # Sizes of the published checkpoints, in billions.
    sizes = {"3-1.7B": 1.72, "3-8B": 8.19, "3-VL-2B-Instruct": 2.13, "3-VL-8B-Instruct": 8.77}
    for short, billions in sizes.items():
        name = f"Qwen/Qwen{short}"
        known = known_model(name)
        assert known is not None
        policy = empty_policy(ModelConfig(path=name), device="cpu", trainable=False, known=known)
        found = sum(p.numel() for p in policy.model.parameters())
        assert found / 1e9 == pytest.approx(billions, rel=0.005), name


def test_an_unknown_model_says_what_is_enough():
    config = RunConfig(
        student=ModelConfig(path="./nowhere"), teacher=ModelConfig(path="./nowhere"),
        data=DataConfig(train="x"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="nowhere"):
        memory_table.empty_student(config)


def test_the_answer_is_in_words():
    phase = Phase(weights=8, optimizer=0, gradients=0, kept=0, activations=0, chunk=0)
    report = MemoryReport(phases={"loss": phase}, process=1)
    words = [memory_table.verdict(report, Device(kind="cuda", memory=m))[0] for m in (8, 9, 100)]
    assert words == ["it does not fit", "it fits, but barely", "it fits"]
