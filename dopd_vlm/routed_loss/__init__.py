"""The routed loss: scores of the targets (pass 1), then weighted divergences and their gradients in chunks (pass 2)."""

from dopd_vlm.routed_loss.head import Head, compose_head, compose_hidden
from dopd_vlm.routed_loss.loss import LossOutput, routed_loss, target_scores
from dopd_vlm.routed_loss.plan import Student, Target
from dopd_vlm.routed_loss.target_scores import TargetScores

__all__ = [
    "Head",
    "LossOutput",
    "Student",
    "Target",
    "TargetScores",
    "compose_head",
    "compose_hidden",
    "routed_loss",
    "target_scores",
]
