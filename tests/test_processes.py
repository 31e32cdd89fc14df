"""The update does not depend on how the rollouts lie over processes: real gloo processes, float64."""

import time
from pathlib import Path

import process_agree
import process_step
import pytest
import tiny
import torch
from ranks import run_ranks

from dopd_vlm.distributed import FOREIGN, process_state


def run_step(out: Path, name: str, micro: int, counts: list[int]) -> dict:
    """The gradients and metrics of one step spread over as many ranks as there are counts."""
    run_ranks(process_step.main, len(counts), str(out), name, micro, counts)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", ["dopd"])
def test_one_process_equals_two_of_unequal_and_of_empty_share(name, tmp_path):
    whole = run_step(tmp_path / "whole.pt", name, 8, [3])
    for micro, counts in ((8, [1, 2]), (2, [3, 0])):
        parts = run_step(tmp_path / "parts.pt", name, micro, counts)
        assert parts["drawn"] == whole["drawn"]
        for key in (
            "loss",
            "share/ht",
            "share/lh",
            "rollout/length",
            "optim/grad_norm",
            "threshold/gap",
            "probe/plain_length",
            "probe/privileged_accuracy",
        ):
            assert parts["metrics"][key] == pytest.approx(whole["metrics"][key], rel=1e-6), key
        for key, grad in whole["gradients"].items():
            assert (parts["gradients"][key] - grad).norm() <= 1e-6 * grad.norm() + 1e-12, key


def test_rows_of_all_ranks_keep_their_nan():
    expected = "[[1.0, 1.0], [2.0, 2.0], [nan, 3.0], [4.0, 4.0]]"
    assert run_ranks(process_agree.rows, 2) == [expected, expected]


@pytest.mark.parametrize("bucket_bytes", [1, 10_000])
def test_gradients_are_summed_in_buckets_of_any_size(bucket_bytes):
    expected = [
        [2 * i + 100.0 for i in range(6)], [i + 110.0 for i in range(4)], [2 * 20.0 + 100.0],
    ]  # fmt: skip
    assert run_ranks(process_agree.gradients, 2, bucket_bytes) == [expected] * 2


def test_a_loss_that_is_not_finite_on_one_rank_stops_both():
    said = run_ranks(process_agree.nonfinite, 2)
    assert said[0] == said[1] and said[0].startswith("stopped: step 0: the loss is nan")


def test_a_signal_to_one_rank_ends_both_at_the_same_step(tmp_path):
    tiny.save_pair(tmp_path)
    said = run_ranks(process_agree.stop, 2, str(tmp_path))
    assert said[0] == said[1] and said[0].endswith("interrupted True")
    assert (tmp_path / "out" / "run" / "checkpoint").is_dir()


def test_a_failing_rank_ends_the_others_with_its_words(tmp_path):
    start = time.monotonic()
    with pytest.raises(AssertionError, match="MemoryError: no room for 3 GiB"):
        run_ranks(process_agree.one_fails, 2, str(tmp_path))
    assert time.monotonic() - start < 60
    told = (tmp_path / "1.log").read_text()
    assert "rank 1 stops, as another has failed: rank 0: MemoryError: no room for 3 GiB" in told


def test_ranks_that_begin_with_other_weights_are_refused():
    assert run_ranks(process_agree.weights, 2, "none") == ["the same"] * 2
    for name in ("student", "teacher"):
        said = run_ranks(process_agree.weights, 2, name)
        assert said[0] == said[1] and f"the {name}'s weights on rank 1 are not" in said[0]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_sharding_that_would_be_ignored_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "true")
    with pytest.raises(ValueError, match=f"{name}=true: models are not sharded here"):
        process_state()
