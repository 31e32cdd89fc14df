"""Run under torchrun: one distil_step on this process's share of given rollouts; rank 0 saves the outcome.

    torchrun --nproc_per_node N tests/process_step.py OUT METHOD MICRO_BATCH_SIZE SHARES

SHARES, e.g. 3,0 or 2,1, is how many of the three samples each process takes, in order.
"""

import sys
from dataclasses import replace

import torch
from accelerate.utils import gather_object
from test_step import UIDS, make_rollouts, make_samples, make_state

from dopd_vlm.tracking.observer import privilege_probe
from dopd_vlm.training.step import Clock, distil_step, roll_out


def main(out: str, name: str, micro: str, shares: str) -> None:
    state = make_state(name, micro=int(micro), score=int(micro))
    counts = [int(count) for count in shares.split(",")]
    accelerator = state.accelerator
    assert accelerator.num_processes == len(counts), (accelerator.num_processes, counts)
    first = sum(counts[: accelerator.process_index])
    mine = slice(first, first + counts[accelerator.process_index])
    caught = {}
    state.optimizer.register_step_pre_hook(
        lambda *_: caught.update(
            {
                n: p.grad.clone()
                for n, p in state.student.model.named_parameters()
                if p.grad is not None
            }
        )
    )
    rollouts = make_rollouts()[2 * mine.start : 2 * mine.stop]
    samples = make_samples(state)[mine]
    placed = [replace(sample, place=mine.start + i) for i, sample in enumerate(samples)]
    drawn = [(r.uid, r.completion_ids.tolist()) for r in roll_out(state, placed)]
    drawn = gather_object(drawn) if len(counts) > 1 else drawn
    probe = privilege_probe(state, samples, lambda _, sample: UIDS.index(sample.uid))
    output = distil_step(state, samples, rollouts, Clock())
    if accelerator.is_main_process:
        torch.save(
            {"gradients": caught, "metrics": {**output.metrics, **probe}, "drawn": drawn}, out
        )
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
