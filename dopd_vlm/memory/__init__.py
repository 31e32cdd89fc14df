"""Prediction of a run's peak memory, phase by phase."""

from dopd_vlm.memory.predict import Device, MemoryReport, Phase, predict, this_device

__all__ = [
    "Device",
    "MemoryReport",
    "Phase",
    "predict",
    "this_device",
]
