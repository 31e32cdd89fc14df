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
from dopd_vlm.training.checkpoint import checkpoints, last_checkpoint
from dopd_vlm.training.samples import stand_ins


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

    def evaluate(student, step, is_last, *, teacher, engine):
        assert teacher is not None and teacher is not student
        assert engine.version == step
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

    def evaluate(student, at, is_last, *, teacher, engine):
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


def test_the_last_checkpoint_and_as_many_as_asked_for_are_kept(models, tmp_path):
    result = train(make_config(models, tmp_path, steps=4, every=1, keep_checkpoints=1), SAMPLES[:3])
    kept = [path.name for path in checkpoints(result.run_dir)]
    assert kept == ["step_000003", "step_000004"]
    assert (result.run_dir / "checkpoint").resolve() == checkpoints(result.run_dir)[-1].resolve()


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


class Rows(list):
    """Samples of which some cannot be made, as rows read when asked for."""

    def __init__(self, samples, bad: set[int]) -> None:
        super().__init__(samples)
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise ValueError(f"row 'r{index}' (rows.jsonl line {index + 1}): no image")
        return super().__getitem__(index)


def steps_of(run_dir) -> list[dict]:
    return [line for line in metrics(run_dir) if "loss" in line]


def interrupting(student, step, is_last, **_):
    """SIGINT after the second step: the third is done and saved."""
    if step == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return {}


def test_a_resumed_run_skips_the_same_rows_with_the_same_words(models, tmp_path):
    """Bad rows stay known: a row that stood in for none is not tried again after a restart."""
    rows = Rows([*SAMPLES, *SAMPLES, *SAMPLES], set(range(15)) - {2, 9})
    told = []
    for name, halves in (("a", False), ("b", True)):
        config = make_config(models, tmp_path / name)
        if halves:
            assert train(config, rows, evaluate=interrupting).interrupted
            config = replace(config, resume=True)
        result = train(config, rows)
        lines = (result.run_dir / "skipped.jsonl").read_text().splitlines()
        told.append((result.num_skipped, [json.loads(line) for line in lines]))
    assert told[0] == told[1]
    assert told[0][0] == len(told[0][1]) >= 5


def test_with_batches_of_one_a_good_row_stands_in_for_a_bad_one(models, tmp_path):
    config = make_config(models, tmp_path, steps=4)
    config = replace(config, optim=replace(config.optim, batch_size=1))
    result = train(config, Rows(SAMPLES, {1, 2}))
    assert result.step == 4 and 0 < result.num_skipped <= 4
    lines = steps_of(result.run_dir)
    assert [line["count/sequences"] for line in lines] == [lines[0]["count/sequences"]] * 4
    skipped = (result.run_dir / "skipped.jsonl").read_text()
    assert "row 'r1' (rows.jsonl line 2): no image" in skipped


def test_a_resumed_run_takes_the_same_stand_ins(models, tmp_path):
    def interrupt(student, at, is_last, *, teacher, engine):
        if at == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    rows = Rows(SAMPLES, {0, 3})
    whole = train(make_config(models, tmp_path / "a"), rows)
    part = train(make_config(models, tmp_path / "b"), rows, evaluate=interrupt)
    assert part.interrupted and part.step == 3
    again = train(make_config(models, tmp_path / "b", resume=True), rows)
    losses = [[line["loss"] for line in steps_of(run.run_dir)] for run in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert (whole.run_dir / "skipped.jsonl").read_text()


def test_a_run_without_one_good_row_says_why(models, tmp_path):
    with pytest.raises(ValueError, match=r"no row can be used.*line \d.*no image"):
        train(make_config(models, tmp_path, steps=1), Rows(SAMPLES, {0, 1, 2, 3, 4}))


def test_samples_without_a_readable_answer_train_and_are_left_out_of_the_accuracy(models, tmp_path):
    def score(text, sample):
        return None if sample.uid == SAMPLES[0].uid else 1.0

    result = train(make_config(models, tmp_path, steps=2), SAMPLES, score_answer=score)
    lines = metrics(result.run_dir)
    assert {line["rollout/accuracy"] for line in lines if "rollout/accuracy" in line} == {1.0}
    assert {line["probe/plain_accuracy"] for line in lines if "probe/plain_accuracy" in line} == {
        1.0
    }
    assert any(line.get("rollout/unscored") for line in lines)
    assert [line["probe/unscored"] for line in lines if "probe/plain_length" in line] == [1.0, 1.0]


def test_where_no_answer_can_be_read_there_is_no_accuracy(models, tmp_path):
    config = make_config(models, tmp_path, steps=1)
    result = train(config, SAMPLES, score_answer=lambda text, sample: None)
    lines = metrics(result.run_dir)
    assert not any(name.endswith("accuracy") for line in lines for name in line)


def test_every_row_comes_once_among_the_stand_ins():
    for num_rows in (1, 2, 6, 35, 64):
        orders = [list(stand_ins(num_rows, 3, place)) for place in range(20)]
        assert all(sorted(order) == list(range(num_rows)) for order in orders)
        assert len({order[0] for order in orders}) > 1 or num_rows == 1
