"""Prints as JSON: `measure` the peak memory of two steps, `predict` the report's peak, `report` its phases.

python tests/process_memory.py measure|predict|report MODEL PROMPTS TOKENS MICRO [checkpointing]
"""

import json
import resource
import sys
from argparse import Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
import bench_step
import memory_table
import torch

from dopd_vlm.assembly import configured_method
from dopd_vlm.config import RunConfig
from dopd_vlm.memory import predict


def main(mode: str, model: str, prompts: str, tokens: str, micro: str) -> None:
    torch.set_num_threads(1)
    args = Namespace(
        model=model, prompts=int(prompts), generations=4, tokens=int(tokens), micro=int(micro), natural=False,
        smollm2=bench_step.SMOLLM2,
    )  # fmt: skip
    peak = measured(args) if mode == "measure" else predicted(bench_step.recipe(args, "dopd"))
    sys.stdout.write(json.dumps({"peak": peak}) + "\n")


def measured(args: Namespace) -> int:
    state = bench_step.make_state(args, "dopd")
    samples = bench_step.encoded(args, state)
    for _ in range(2):
        bench_step.our_step(state, samples)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def predicted(config: RunConfig) -> int:
    return predict(config, configured_method(config), memory_table.prompts_of(config)).peak


if __name__ == "__main__":
    main(*sys.argv[1:])
