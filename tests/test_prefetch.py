"""Rows made ahead in other processes: the same rows, errors and run; nothing is left behind."""

import os
from itertools import chain
from pathlib import Path

import psutil
import pytest
import tiny
import torch

from dopd_vlm.config import ChatConfig, DataConfig, ModelConfig, RunConfig
from dopd_vlm.prefetch import BadRow, EncodedStream, num_workers
from dopd_vlm.state import EncodedSample
from dopd_vlm.train import row_order

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
    return EncodedStream(config(workers), tiny.vl_policy(), given, order, workers=workers, ahead=4)


def content(item: EncodedSample | BadRow) -> list:
    """All of it, comparable."""
    if isinstance(item, BadRow):
        return [item.row, item.reason]
    pictures = [
        p.tobytes() for view in ("plain", "privileged") for p in item.sample.view(view).images
    ]
    prompts = [item.prompts["plain"], item.prompts["privileged"]]
    tensors = chain.from_iterable(
        (p.input_ids, p.token_types, *p.pictures.values()) for p in prompts
    )
    return [item.sample.uid, *pictures, *(p.text for p in prompts), *(t.tolist() for t in tensors)]


def test_two_workers_give_the_rows_and_errors_of_none_in_the_same_order():
    given, order = samples(), row_order(9, seed=3, start=5, count=20)
    before = torch.get_rng_state()
    alone, helped = stream(given, order, 0), stream(given, order, 2)
    found = [[content(item) for n in (7, 13) for item in s.take(n)] for s in (alone, helped)]
    workers = psutil.Process().children(recursive=True)
    helped.close()
    assert found[0] == found[1]
    bad = [item for item in found[1] if item[0] == LONG]
    assert len(bad) == order.count(LONG) > 1 and "'too-long': a prompt of" in bad[0][1]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(workers) > 2  # the server with its two, and what watches over shared resources
    _, alive = psutil.wait_procs(workers, 5, callback=None)
    assert {process.ppid() for process in alive} <= {os.getpid()}


def test_only_as_many_rows_as_asked_for_are_made_ahead():
    class Order(list):
        taken = 0

        def __iter__(self):
            for row in super().__iter__():
                self.taken += 1
                yield row

    order = Order(range(9))
    ahead = EncodedStream(config(2), tiny.vl_policy(), samples(), order, workers=2, ahead=4)
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
