"""One optimizer step and what a run of steps needs: samples, targets, metrics, checkpoints."""

from dopd_vlm.training.samples import EncodedSample, encode_sample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import Clock, NonFiniteLossError, distil_step, train_step

__all__ = [
    "Clock",
    "EncodedSample",
    "NonFiniteLossError",
    "TrainState",
    "distil_step",
    "encode_sample",
    "train_step",
]
