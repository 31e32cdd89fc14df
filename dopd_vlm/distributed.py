"""All talk between the processes of a run."""

from collections import Counter
from collections.abc import Mapping

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
    """All ranks' rows; ranks may hold different counts."""
    if accelerator.num_processes == 1:
        return rows.cpu()
    padded = accelerator.pad_across_processes(rows, dim=0, pad_index=float("nan"))  # type: ignore[arg-type]
    gathered = accelerator.gather(padded)
    assert isinstance(gathered, Tensor)
    return gathered[~gathered.isnan().any(-1)].cpu()
