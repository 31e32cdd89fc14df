"""scripts/train.py as a process of its own: Ctrl-C saves and exits, resume goes on; bfloat16."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dopd_vlm.config import ModelConfig
from dopd_vlm.models.policy import load_policy

ROOT = Path(__file__).parent.parent
STEPS = 30
SHORT = (
    "optim.batch_size=2",
    "data.limit=16",
    "rollout.max_completion_length=24",
    "evaluation.tasks=[]",
)


def command(out: Path, *overrides: str) -> list[str]:
    """The text demo, shortened."""
    recipe = "scripts/recipes/demo_text.yaml"
    return [sys.executable, "scripts/train.py", recipe, f"output_dir={out}", *SHORT, *overrides]


def steps(run_dir: Path) -> list[int]:
    """Numbers of the steps in metrics.jsonl."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def wait_for(process: subprocess.Popen, run_dir: Path, count: int) -> None:
    """Until so many steps are done."""
    until = time.monotonic() + 300
    while len(steps(run_dir)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_and_resume_goes_on(tmp_path, number):
    run_dir = tmp_path / "demo_text"
    process = subprocess.Popen(
        command(tmp_path, f"optim.max_steps={STEPS}"), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for(process, run_dir, 3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    done = steps(run_dir)
    assert 3 <= done[-1] < STEPS
    assert f"interrupted: step {done[-1]} is saved, go on with resume=true" in output
    assert "Traceback" not in output
    saved = run_dir / "checkpoint"
    assert saved.resolve().name == f"step_{done[-1]:06d}"
    load_policy(ModelConfig(path=str(saved)), device="cpu", trainable=False)
    again = subprocess.run(
        command(tmp_path, f"optim.max_steps={STEPS}", "resume=true"), cwd=ROOT, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert steps(run_dir) == list(range(1, STEPS + 1))
    assert saved.resolve().name == f"step_{STEPS:06d}"


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_without_a_traceback(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "optim.max_steps=5000"), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for(process, tmp_path / "demo_text", 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "stopped at once" in output or "is saved, go on with resume=true" in output


def test_a_run_in_bfloat16_takes_its_steps_with_float32_weights(tmp_path):
    # In a process of its own: accelerate fixes the precision of a process with its first Accelerator.
    done = subprocess.run(
        command(tmp_path, "optim.max_steps=2", "precision=bfloat16", "data.limit=4"), cwd=ROOT, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(tmp_path / "demo_text") == [1, 2]
    settings = json.loads((tmp_path / "demo_text" / "checkpoint" / "config.json").read_text())
    assert settings["dtype"] == "float32"
