"""Sampling of completions from the student."""

from dopd_vlm.rollout.own import generate

__all__ = [
    "generate",
]
