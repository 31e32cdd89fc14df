"""Sampling of completions from the student."""

from dopd_vlm.rollout.engine import EngineError, RolloutEngine, StalePolicyError
from dopd_vlm.rollout.engines import open_engine, register
from dopd_vlm.rollout.own import OwnEngine, generate

__all__ = [
    "EngineError",
    "OwnEngine",
    "RolloutEngine",
    "StalePolicyError",
    "generate",
    "open_engine",
    "register",
]
