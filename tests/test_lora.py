"""LoRA runs: resume keeps the self-target, the checkpoint loads like any other; ends of completions are compared."""

import warnings
from dataclasses import replace

import pytest
import tiny
import torch
from test_train import interrupt_at

from dopd_vlm.config import (
    DataConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.models.policy import check_vocabularies, load_policy
from dopd_vlm.train import train
from dopd_vlm.training.build import build_state, make_accelerator, run_folder

pytest.importorskip("peft", reason="the extra `peft` is not installed")
SAMPLES = [tiny.text_sample(uid) for uid in ("a", "bcd", "ef")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.save_pair(tmp_path_factory.mktemp("models"), tiny.text_policy)


def lora_config(models, out, self_target, steps=2) -> RunConfig:
    return RunConfig(
        student=ModelConfig(path=str(models / "s")), teacher=ModelConfig(path=str(models / "t")),
        data=DataConfig(train="memory"), name="run", output_dir=str(out), lora=LoraConfig(rank=2),
        method=MethodConfig(self_target=self_target, top_k=16, ema_rate=0.3),
        rollout=RolloutConfig(num_generations=2, max_completion_length=4), checkpoint_every=2,
        optim=OptimConfig(
            max_steps=steps, batch_size=2, micro_batch_size=4, score_batch_size=4, learning_rate=1e-2
        ),
    )  # fmt: skip


def resumed_state(config: RunConfig):
    again = replace(config, resume=True)
    return build_state(again, make_accelerator(again), run_folder(again))


@torch.no_grad()
def logits(policy) -> torch.Tensor:
    return policy.model(input_ids=torch.arange(5, 25)[None]).logits


def test_a_resumed_run_keeps_its_frozen_self_target(models, tmp_path):
    config = lora_config(models, tmp_path, "frozen")
    train(config, SAMPLES)
    state = resumed_state(config)
    first = load_policy(config.student, device="cpu", trainable=False)
    assert torch.equal(logits(state.self_target), logits(first))
    assert not torch.equal(logits(state.student), logits(first))
    assert not any(p.requires_grad for p in state.self_target.model.parameters())


def test_a_resumed_run_keeps_its_average(models, tmp_path):
    config = lora_config(models, tmp_path, "ema")
    train(config, SAMPLES)
    state = resumed_state(config)
    first = load_policy(config.student, device="cpu", trainable=False)
    average = logits(state.self_target)
    assert not torch.equal(average, logits(first)) and not torch.equal(
        average, logits(state.student)
    )
    assert not any(p.requires_grad for p in state.self_target.model.parameters())


@pytest.mark.parametrize("self_target", ["frozen", "ema"])
def test_two_and_two_steps_equal_four(models, tmp_path, self_target):
    whole = train(lora_config(models, tmp_path / "a", self_target, steps=4), SAMPLES)
    halves = lora_config(models, tmp_path / "b", self_target, steps=4)
    interrupt_at(halves, 2, SAMPLES)
    again = train(replace(halves, resume=True), SAMPLES)
    ours, theirs = (load_checkpoint(run) for run in (again, whole))
    assert torch.equal(logits(ours), logits(theirs))


def load_checkpoint(run):
    path = str(run.run_dir / "checkpoint")
    return load_policy(ModelConfig(path=path), device="cpu", trainable=False)


def test_a_checkpoint_of_adapters_loads_like_any_other(models, tmp_path):
    config = lora_config(models, tmp_path, "frozen")
    run = train(config, SAMPLES)
    policy = load_checkpoint(run)
    trained = logits(resumed_state(config).student)
    torch.testing.assert_close(logits(policy), trained, rtol=1e-5, atol=1e-5)
    assert evaluate(policy, "shapes", samples=SAMPLES).n == len(SAMPLES)


def test_adapters_whose_base_is_gone_are_told(models, tmp_path):
    run = train(lora_config(models, tmp_path, "frozen"), SAMPLES)
    path = run.run_dir / "checkpoint" / "adapter_config.json"
    path.write_text(path.read_text().replace(str(models / "s"), str(models / "gone")))
    with pytest.raises(ValueError, match=r"holds adapters of .*gone.*does not exist"):
        load_checkpoint(run)


def test_a_student_that_goes_on_behind_the_teacher_s_end_is_told(models):
    student, teacher = tiny.text_policy(0), tiny.text_policy(1)
    student.model.generation_config.eos_token_id = student.pad_id
    end = teacher.eos_ids[0]
    with pytest.warns(
        UserWarning, match=rf"ends completions with <\|im_end\|>.*\[{end}, {student.pad_id}\]"
    ):
        check_vocabularies(student, teacher)
    source = ModelConfig(path=str(models / "s"), eos_token_ids=[end, student.pad_id])
    told = load_policy(source, device="cpu", trainable=False)
    assert told.eos_ids == (end, student.pad_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_vocabularies(told, teacher)
