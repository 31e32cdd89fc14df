"""Annotations written by a strong model behind an endpoint."""

from .outcomes import Task
from .pipeline import Outcome, Progress, annotate
from .requests import WORDINGS

__all__ = [
    "WORDINGS",
    "Outcome",
    "Progress",
    "Task",
    "annotate",
]
