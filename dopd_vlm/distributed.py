"""All talk between the processes of a run."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor, distributed, nn

log = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another, e.g. while one saves; a process that fails is noticed at once."""
BUCKET_BYTES = 32 * 2**20
"""Of gradients that travel together; two buckets of copies exist at a time."""
PAUSE = 2.0
"""Seconds between two looks at whether another process has failed."""
FAILURE = "dopd_vlm/failure"
"""Key under which the first process that fails leaves its words."""
FOREIGN = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""Set by `accelerate launch` for ways of sharding a model over processes."""


def process_state() -> PartialState:
    """This process among those of `accelerate launch` or `torchrun`.

    PartialState alone overlooks ACCELERATE_USE_CPU and would then see one process.

    Raises:
        ValueError: the environment asks for FSDP, DeepSpeed or Megatron. Every process holds every model
            whole here; and with such a setting some releases of transformers load zeros on all ranks but one.
    """
    for name in FOREIGN:
        if parse_flag_from_env(name):
            raise ValueError(
                f"{name}={os.environ[name]}: models are not sharded here, every process holds them whole; "
                "unset it (in `accelerate config`: no FSDP, DeepSpeed or Megatron) or start with torchrun"
            )
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)


@contextmanager
def failing_together() -> Iterator[None]:
    """Inside, the failure of one process ends the others within seconds, with its words.

    Otherwise they would wait for it in a collective call until TIMEOUT. A process that is killed
    needs no word of its own: its broken connections and the launcher end the others.
    """
    if process_state().num_processes == 1:
        yield
        return
    # The store through which the processes found each other: it works while a collective call waits.
    store = distributed.distributed_c10d._get_default_store()
    rank, over = process_state().process_index, threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), rank, over), daemon=True).start()
    try:
        yield
    except BaseException as error:
        over.set()
        # Only where it is free: what the first one left must not give way to the others' broken connections.
        store.compare_set(FAILURE, "", f"rank {rank}: {type(error).__name__}: {error}")
        time.sleep(2 * PAUSE)  # it may be this process that holds the store
        raise
    finally:
        over.set()


def _watch(store: Any, rank: int, over: threading.Event) -> None:
    while not over.wait(PAUSE):
        try:
            words = store.get(FAILURE).decode() if store.check([FAILURE]) else None
        except RuntimeError as error:
            words = f"the store of the processes is gone ({error})"
        if words is not None and not over.is_set():
            log.error("rank %d stops, as another has failed: %s", rank, words)
            logging.shutdown()
            # Not an exception: the main thread waits inside a collective call and would never see it.
            os._exit(1)


def end_processes() -> None:
    """Waits for all processes and ends their group; one that left while others still talk to it may abort."""
    state = process_state()
    state.wait_for_everyone()
    state.destroy_process_group()


def total_of(accelerator: Accelerator, sums: Mapping[str, float]) -> Counter[str]:
    """Sums over processes, in the order of their ranks."""
    if accelerator.num_processes == 1:
        return Counter(sums)
    total: Counter[str] = Counter()
    for part in gather_object([dict(sums)]):
        total.update(part)
    return total


def gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """All ranks' rows, in the order of the ranks, which may hold different counts."""
    if accelerator.num_processes == 1:
        return rows.cpu()
    counts: Any = accelerator.gather(torch.tensor([len(rows)], device=rows.device))
    gathered: Any = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))  # type: ignore[arg-type]
    # By counts, not by a mark at the padding: a row may hold anything, NaN too.
    parts = (
        zip(gathered.split(int(counts.max())), counts.tolist(), strict=True) if counts.any() else ()
    )
    return torch.cat([rows[:0], *(part[:count] for part, count in parts)]).cpu()


def any_of(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it is set on any rank: what all must agree on before they part."""
    if accelerator.num_processes == 1:
        return flag
    return any(gather_object([flag]))


def sum_gradients_(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], bucket_bytes: int = BUCKET_BYTES
) -> None:
    """Adds every parameter's `.grad` up over ranks, in place; a rank without one adds zeros.

    In buckets of one dtype, the next of which is filled while the last one travels: one call a
    parameter costs a round trip each. A plain sum, as every weight already holds its share of the
    whole batch; DistributedDataParallel averages, and hangs when a rank has no image in its batch.
    """
    if accelerator.num_processes == 1:
        return
    travelling: tuple[Any, Tensor, list[Tensor]] | None = None
    for bucket in _buckets(parameters, bucket_bytes):
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        handle = distributed.all_reduce(flat, async_op=True)
        _arrive_(travelling)
        travelling = handle, flat, bucket
    _arrive_(travelling)


def _buckets(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> Iterator[list[Tensor]]:
    """Gradients in the parameters' order, which is the same on every rank; a bucket has one dtype."""
    bucket, size = [], 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grad = parameter.grad
        if bucket and (size + grad.nbytes > bucket_bytes or grad.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        yield bucket


def _arrive_(travelling: tuple[Any, Tensor, list[Tensor]] | None) -> None:
    """Waits for a bucket and writes its sums back into the gradients."""
    if travelling is None:
        return
    handle, flat, bucket = travelling
    handle.wait()
    for grad, total in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
        grad.copy_(total.view_as(grad))


def differing_ranks(accelerator: Accelerator, value: str) -> list[int]:
    """Ranks whose value is not that of rank 0; the same list on every rank."""
    if accelerator.num_processes == 1:
        return []
    values = gather_object([value])
    return [rank for rank, one in enumerate(values) if one != values[0]]


def first_failure(accelerator: Accelerator, failure: str | None) -> str | None:
    """The failure of the lowest rank that has one, so that all ranks stop with the same words."""
    if accelerator.num_processes == 1:
        return failure
    return next((one for one in gather_object([failure]) if one is not None), None)
