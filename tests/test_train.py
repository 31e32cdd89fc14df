"""The loop: resume equals an uninterrupted run bit for bit, bad rows, signals, run folder, processes."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from dopd_vlm.config import (
    ChatConfig,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.models.policy import load_policy
from dopd_vlm.tracking.observer import NUM_PROBES
from dopd_vlm.train import row_order, train
from dopd_vlm.training.checkpoint import last_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a random student and a random, wider teacher."""
    return tiny.save_pair(tmp_path_factory.mktemp("models"))


def make_config(
    models: Path, out: Path, *, self_target="live", steps=4, every=2, **fields
) -> RunConfig:
    return RunConfig(
        student=ModelConfig(path=str(models / "s")), teacher=ModelConfig(path=str(models / "t")),
        data=DataConfig(train="memory"), name="run", output_dir=str(out), checkpoint_every=every,
        rollout=RolloutConfig(num_generations=2, max_completion_length=5),
        method=MethodConfig(self_target=self_target, top_k=16),
        optim=OptimConfig(batch_size=3, micro_batch_size=4, learning_rate=1e-3, max_steps=steps),
        evaluation=EvaluationConfig(every=2), **fields,
    )  # fmt: skip


SAMPLES = [tiny.vl_sample(f"row{i}", seed=i) for i in range(5)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    config = ModelConfig(path=str(run_dir / "checkpoint"))
    return load_policy(config, device="cpu", trainable=False).model.state_dict()


@pytest.mark.parametrize("self_target", ["live", "ema", "frozen"])
def test_two_and_two_steps_equal_four_bit_for_bit(models, tmp_path, self_target):
    whole = train(make_config(models, tmp_path / "a", self_target=self_target), SAMPLES)
    halves = make_config(models, tmp_path / "b", self_target=self_target)
    interrupt_at(halves, 2)
    again = train(
        make_config(models, tmp_path / "b", self_target=self_target, resume=True), SAMPLES
    )
    assert (whole.step, again.step) == (4, 4)
    expected, found = weights(whole.run_dir), weights(again.run_dir)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    losses = [
        [line["loss"] for line in metrics(result.run_dir) if "loss" in line]
        for result in (whole, again)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_run_interrupted_before_an_evaluation_makes_it_up(models, tmp_path):
    interrupt_at(make_config(models, tmp_path), 2)
    asked = []

    def evaluate(student, step, is_last, *, teacher):
        assert teacher is not None and teacher is not student
        asked.append((step, is_last))
        return {"eval/task/plain/accuracy": 0.5}

    config = make_config(models, tmp_path, resume=True)
    done = train(config, SAMPLES, evaluate=evaluate, recipe=replace(config, seed=7))
    assert asked == [(2, False), (4, True)]
    assert "seed: 7" in (done.run_dir / "config.yaml").read_text()
    train(config, SAMPLES, evaluate=evaluate)
    assert len(asked) == 2, "a finished run is not measured again"
    maps = [json.loads(line) for line in (done.run_dir / "token_maps.jsonl").open()]
    assert len({(m["step"], m["uid"]) for m in maps}) == len(maps)


def interrupt_at(config: RunConfig, step: int, samples=None) -> None:
    """A run that gets SIGINT during the given step."""
    seen = {
        "steps": -min(NUM_PROBES, len(samples or SAMPLES))
    }  # the probes are read before the first step

    def evaluate(student, at, is_last, *, teacher):
        return {}

    class Rows(list):
        def __getitem__(self, index):
            seen["steps"] += 1
            if seen["steps"] == (step - 1) * config.optim.batch_size + 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    result = train(config, Rows(samples or SAMPLES), evaluate=evaluate)
    assert result.interrupted and result.step == step


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_config_environment_metrics_and_samples(models, tmp_path):
    result = train(make_config(models, tmp_path), SAMPLES, score_answer=lambda text, sample: 0.5)
    names = {path.name for path in result.run_dir.iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "samples.jsonl",
        "checkpoint",
    } <= names
    line = next(line for line in metrics(result.run_dir) if line["step"] == 1)
    expected = (
        "loss", "share/lh", "divergence/ht", "gap/mean", "threshold/gap", "entropy/student", "rollout/length",
        "rollout/accuracy", "optim/grad_norm", "time/rollout", "time/score", "time/loss", "time/step",
    )  # fmt: skip
    assert set(expected) <= line.keys() and line["rollout/accuracy"] == 0.5
    sample = json.loads((result.run_dir / "samples.jsonl").read_text().splitlines()[0])
    assert len(sample["tokens"]) == len(sample["regime"]) == len(sample["teacher_logp"]) > 0
    probes = [line for line in metrics(result.run_dir) if "probe/privileged_length" in line]
    assert [line["step"] for line in probes] == [0, 2, 4]


def test_a_second_run_of_the_same_name_is_refused(models, tmp_path):
    train(make_config(models, tmp_path, steps=1), SAMPLES)
    with pytest.raises(ValueError, match="resume=true"):
        train(make_config(models, tmp_path, steps=1), SAMPLES)


def test_bad_rows_are_counted_and_written_down(models, tmp_path):
    config = make_config(models, tmp_path, steps=2, chat=ChatConfig(max_prompt_length=80))
    long = tiny.vl_sample("too-long", context="x" * 90)
    result = train(config, [*SAMPLES[:3], long])
    skipped = [
        json.loads(line) for line in (result.run_dir / "skipped.jsonl").read_text().splitlines()
    ]
    assert result.num_skipped == len(skipped) > 0
    assert all("too-long" in line["reason"] and "80" in line["reason"] for line in skipped)


def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one_whole(models, tmp_path, monkeypatch):
    result = train(make_config(models, tmp_path, steps=2), SAMPLES)
    before = weights(result.run_dir)
    import dopd_vlm.training.checkpoint as checkpoint

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match=r"step_000004.*earlier ones are whole"):
        train(make_config(models, tmp_path, steps=4, resume=True), SAMPLES)
    found = last_checkpoint(result.run_dir)
    assert found is not None and found.name == "step_000002"
    assert not list((result.run_dir / "checkpoints").glob("*.partial"))
    assert all(torch.equal(value, before[name]) for name, value in weights(result.run_dir).items())


def test_vocabularies_must_agree(models, tmp_path):
    other = tiny.text_policy()
    other.tokenizer.add_tokens(["<extra>"])
    other.model.save_pretrained(tmp_path / "o")
    other.processor.save_pretrained(tmp_path / "o")
    config = make_config(models, tmp_path)
    config = RunConfig(**{**vars(config), "teacher": ModelConfig(path=str(tmp_path / "o"))})
    with pytest.raises(ValueError, match=r"1 tokens to different ids.*<extra>"):
        train(config, SAMPLES)


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/model"])
def test_an_absent_model_folder_is_named(models, tmp_path, path):
    config = RunConfig(**{**vars(make_config(models, tmp_path)), "student": ModelConfig(path=path)})
    with pytest.raises(ValueError, match=f"{path}.*does not exist"):
        train(config, SAMPLES)


def test_row_order_passes_over_every_row_once_and_then_anew():
    order = row_order(5, seed=3, start=0, count=15)
    assert [sorted(order[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3
    assert order[:5] != order[5:10] and order[4:9] == row_order(5, seed=3, start=4, count=5)
