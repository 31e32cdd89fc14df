"""One distil_step on a rank's share of given rollouts; rank 0 saves the outcome."""

from dataclasses import replace

import torch
from accelerate.utils import gather_object
from test_step import UIDS, make_rollouts, make_samples, make_state

from dopd_vlm.tracking.observer import privilege_probe
from dopd_vlm.training.step import Clock, distil_step, roll_out


def main(out: str, name: str, micro: int, counts: list[int]) -> None:
    """`counts`, e.g. [3, 0] or [2, 1]: how many of the three samples each rank takes, in order."""
    state = make_state(name, micro=micro, score=micro)
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
