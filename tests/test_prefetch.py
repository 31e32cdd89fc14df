"""Rows made ahead in other processes: the same rows, errors and run; nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import psutil
import pytest
import tiny
import torch

from dopd_vlm.config import ChatConfig, DataConfig, ModelConfig, RunConfig
from dopd_vlm.train import row_order
from dopd_vlm.training.samples import BadRow, EncodedSample, EncodedStream, num_workers

ROOT = Path(__file__).parent.parent
LONG = 4
"""Place of the row whose prompt is too long."""


def config(workers: int | None) -> RunConfig:
    model = ModelConfig(path="memory")
    return RunConfig(
        student=model, teacher=model, data=DataConfig(train="memory", workers=workers),
        chat=ChatConfig(max_prompt_length=80),
    )  # fmt: skip


def samples() -> list:
    made = [tiny.vl_sample(f"row{i}", seed=i, size=(48 + 16 * i, 32)) for i in range(9)]
    made[LONG] = tiny.vl_sample("too-long", context="x" * 90)
    return made


def stream(given: list, order: list[int], workers: int) -> EncodedStream:
    return EncodedStream(
        config(workers), tiny.vl_policy().encoder, given, order, workers=workers, ahead=4
    )


def content(item: EncodedSample | BadRow) -> list:
    """All of it, comparable."""
    if isinstance(item, BadRow):
        return [item.row, item.reason]
    images = [
        p.tobytes() for view in ("plain", "privileged") for p in item.sample.view(view).images
    ]
    prompts = [item.prompts["plain"], item.prompts["privileged"]]
    tensors = chain.from_iterable(
        (p.input_ids, *p.token_inputs.values(), *p.image_tensors.values()) for p in prompts
    )
    return [item.sample.uid, *images, *(p.text for p in prompts), *(t.tolist() for t in tensors)]


def test_two_workers_give_the_rows_and_errors_of_none_in_the_same_order():
    given, order = samples(), row_order(9, seed=3, start=5, count=20)
    before = torch.get_rng_state()
    alone, helped = stream(given, order, 0), stream(given, order, 2)
    found = [[content(item) for n in (7, 13) for item in s.take(n)] for s in (alone, helped)]
    # Their server, which goes on, is a child of this process, and they are children of the server.
    children = psutil.Process().children(recursive=True)
    readers = [process for process in children if process.ppid() != os.getpid()]
    helped.close()
    assert found[0] == found[1]
    bad = [item for item in found[1] if item[0] == LONG]
    assert len(bad) == order.count(LONG) > 1 and "'too-long': a prompt of" in bad[0][1]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(readers) == 2
    assert not psutil.wait_procs(readers, 5)[1]


def test_only_as_many_rows_as_asked_for_are_made_ahead():
    class Order(list):
        taken = 0

        def __iter__(self):
            for row in super().__iter__():
                self.taken += 1
                yield row

    order = Order(range(9))
    ahead = EncodedStream(config(2), tiny.vl_policy().encoder, samples(), order, workers=2, ahead=4)
    ahead.take(1)
    ahead.close()
    assert order.taken == 5


def test_samples_that_cannot_be_sent_are_refused_with_what_to_do():
    class Local(list):
        pass

    with pytest.raises(ValueError, match=r"data\.workers=1.*Local.*or set data\.workers=0"):
        stream(Local(samples()), [0], 1)


def test_no_worker_on_cpu_two_on_a_gpu_unless_the_recipe_says():
    devices = torch.device("cpu"), torch.device("cuda")
    assert [num_workers(config(None), device) for device in devices] == [0, 2]
    assert [num_workers(config(3), device) for device in devices] == [3, 3]
    with pytest.raises(ValueError, match=r"data\.workers=-1 is not allowed: >= 0"):
        config(-1)


SHORT = (
    "data.train=embedded:lists/train?num=40", "data.workers=2", "optim.batch_size=4", "optim.max_steps=12",
    "rollout.max_completion_length=16", "checkpoint_every=4", "evaluation.tasks=[]",
)  # fmt: skip


def begin(out: Path, *overrides: str) -> subprocess.Popen:
    """A training with two workers, in a process group of its own."""
    recipe = ["scripts/train.py", "scripts/recipes/demo_text.yaml", f"output_dir={out}"]
    return subprocess.Popen(
        [sys.executable, *recipe, *SHORT, *overrides], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def losses(out: Path) -> dict[int, float]:
    """{step: loss}; it depends on every row of the step."""
    file = out / "demo_text" / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}


def below(process: subprocess.Popen) -> list[psutil.Process]:
    """The server, its workers and the watcher of shared resources, once there are all of them."""
    found = psutil.Process(process.pid).children(recursive=True)
    assert len(found) >= 4, found
    return found


def stopped_at(out: Path, step: int, *overrides: str) -> tuple[subprocess.Popen, list]:
    """A run that has taken so many steps, and the processes below it."""
    process = begin(out, *overrides)
    until = time.monotonic() + 200
    while len(losses(out)) < step:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)
    return process, below(process)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_with_the_rows_that_would_have_come(tmp_path):
    process, others = stopped_at(tmp_path / "a", 6)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(others, 15)
    assert not alive
    assert 6 <= max(losses(tmp_path / "a")) < 12
    again = begin(tmp_path / "a", "resume=true")
    assert again.wait(200) == 0, again.communicate()
    alone = begin(tmp_path / "b", "data.workers=0")
    assert alone.wait(200) == 0, alone.communicate()
    expected = losses(tmp_path / "b")
    assert len(expected) == 12 and losses(tmp_path / "a") == expected


@pytest.mark.slow
def test_ctrl_c_reaches_workers_too_and_the_step_is_still_saved(tmp_path):
    process, others = stopped_at(tmp_path, 2, "optim.max_steps=4000")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130 and "is saved, go on with resume=true" in output, output
    assert "Traceback" not in output, output
    _, alive = psutil.wait_procs(others, 15)
    assert not alive


@pytest.mark.slow
def test_a_broken_image_is_named_by_file_and_uid_whoever_reads_it(tmp_path):
    rows = [
        {"uid": f"u{n}", "images": [f"{n}.png"], "question": "what ?", "answer": "x"}
        for n in range(6)
    ]
    for n in range(6):
        tiny.image(48, 32, seed=n).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = []
    for workers in (0, 2):
        run = begin(
            tmp_path / str(workers), f"data.train={tmp_path}", "data.annotations=[]",
            f"data.workers={workers}", "optim.max_steps=2", "method.name=opsd",
            "student.path=embedded:student_vl", "teacher.path=embedded:teacher_vl",
        )  # fmt: skip
        assert run.wait(200) == 0, run.communicate()
        found.append((tmp_path / str(workers) / "demo_text" / "skipped.jsonl").read_text())
    assert found[0] == found[1]
    assert "row 'u2' (" in found[1] and "metadata.jsonl line 3" in found[1]
