"""What ranks have to agree on: each function runs in every rank and returns what that rank says."""

import logging
import os
import signal
from pathlib import Path

import torch
from accelerate import Accelerator
from test_step import make_rollouts, make_samples, make_state
from test_train import SAMPLES, make_config

from dopd_vlm.distributed import any_of, failing_together, gather_rows, sum_gradients_
from dopd_vlm.train import train
from dopd_vlm.training.agreement import check_same_weights
from dopd_vlm.training.step import Clock, NonFiniteLossError, distil_step


def rows() -> str:
    """Rank 0 has one row, rank 1 three, one of which is NaN."""
    accelerator = Accelerator(cpu=True)
    lists = [[[1.0, 1.0]], [[2.0, 2.0], [torch.nan, 3.0], [4.0, 4.0]]]
    own = torch.tensor(lists[accelerator.process_index])
    return str(gather_rows(accelerator, own).tolist())


def one_fails(folder: str) -> str:
    """Rank 0 raises where rank 1 waits for it."""
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    logging.basicConfig(filename=Path(folder) / f"{rank}.log")
    with failing_together():
        if rank == 0:
            raise MemoryError("no room for 3 GiB")
        any_of(accelerator, False)
    return "went on"


def weights(name: str) -> str:
    """One bit of one weight of rank 1's model is another."""
    state = make_state("dopd")
    policy = {"student": state.student, "teacher": state.teacher}.get(name)
    if policy is not None and state.accelerator.process_index == 1:
        first = next(policy.model.parameters())
        first.data.view(-1)[0] = torch.nextafter(first.data.view(-1)[0], torch.tensor(9.0).double())
    try:
        check_same_weights(state)
    except ValueError as error:
        return str(error)
    return "the same"


def gradients(bucket_bytes: int) -> list[list[float]]:
    """Parameters of two dtypes, the second of which has a gradient on rank 1 alone."""
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    parameters = [
        torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        for shape, dtype in (((2, 3), torch.float64), ((4,), torch.float32), ((), torch.float32))
    ]
    for place, parameter in enumerate(parameters):
        if place != 1 or rank == 1:
            values = torch.arange(parameter.numel()).view_as(parameter) + 10 * place + 100 * rank
            parameter.grad = values.to(parameter.dtype)
    sum_gradients_(accelerator, parameters, bucket_bytes)
    return [parameter.grad.view(-1).tolist() for parameter in parameters]


def nonfinite() -> str:
    """The image of rank 1's sample is NaN in the plain view."""
    state = make_state("opd")
    rank = state.accelerator.process_index
    mine = slice(0, 1) if rank == 0 else slice(1, 2)
    samples, rollouts = make_samples(state)[mine], make_rollouts()[2 * mine.start : 2 * mine.stop]
    if rank == 1:
        samples[0].prompts["plain"].image_tensors["pixel_values"].fill_(torch.nan)
    try:
        distil_step(state, samples, rollouts, Clock())
    except NonFiniteLossError as error:
        return f"stopped: {error}"
    return "went on"


def stop(folder: str) -> str:
    """Rank 1 alone gets SIGTERM, while it reads the rows of its second step."""
    models = Path(folder)
    rank = int(os.environ["RANK"])

    class Rows(list):
        reads = 0

        def __getitem__(self, index):
            Rows.reads += 1
            if rank == 1 and Rows.reads == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    config = make_config(models, models / "out", steps=30, every=100)
    result = train(config, Rows(SAMPLES))
    return f"step {result.step} interrupted {result.interrupted}"
