"""Annotations written by a strong model behind an endpoint."""

from .annotate_prompts import WORDINGS
from .outcomes import Task
from .pipeline import Outcome, Progress, annotate

__all__ = [
    "WORDINGS",
    "Outcome",
    "Progress",
    "Task",
    "annotate",
]
