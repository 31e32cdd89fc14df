"""All talk between the processes of a run."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor


def process_state() -> PartialState:
    """This process among those of `accelerate launch` or `torchrun`.

    PartialState alone overlooks ACCELERATE_USE_CPU and would then see one process.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


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


def first_failure(accelerator: Accelerator, failure: str | None) -> str | None:
    """The failure of the lowest rank that has one, so that all ranks stop with the same words."""
    if accelerator.num_processes == 1:
        return failure
    return next((one for one in gather_object([failure]) if one is not None), None)
