"""The update does not depend on how the rollouts lie over processes: real gloo processes, float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def run_step(out: Path, name: str, micro: int, shares: str) -> dict:
    """The gradients and metrics of one step spread over as many processes as there are shares."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
        str(shares.count(",") + 1), str(ROOT / "tests" / "process_step.py"), str(out), name, str(micro), shares,
    ]  # fmt: skip
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", ["dopd"])
def test_one_process_equals_two_of_unequal_and_of_empty_share(name, tmp_path):
    whole = run_step(tmp_path / "whole.pt", name, 8, "3")
    for micro, shares in ((8, "1,2"), (2, "3,0")):
        parts = run_step(tmp_path / "parts.pt", name, micro, shares)
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


def agree(*arguments: str) -> dict[int, str]:
    """What each of two ranks says."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(ROOT / "tests" / "process_agree.py"), *arguments,
    ]  # fmt: skip
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("rank ")]
    return {int(line[5]): line[8:] for line in lines}


def test_rows_of_all_ranks_keep_their_nan():
    expected = "[[1.0, 1.0], [2.0, 2.0], [nan, 3.0], [4.0, 4.0]]"
    assert agree("rows") == {0: expected, 1: expected}


def test_a_loss_that_is_not_finite_on_one_rank_stops_both():
    said = agree("nonfinite")
    assert said[0] == said[1] and said[0].startswith("stopped: step 0: the loss is nan")


def test_a_signal_to_one_rank_ends_both_at_the_same_step(tmp_path):
    import tiny

    tiny.save_pair(tmp_path)
    said = agree("stop", str(tmp_path))
    assert said[0] == said[1] and said[0].endswith("interrupted True")
    assert (tmp_path / "out" / "run" / "checkpoint").is_dir()
