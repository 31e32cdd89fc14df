"""Verdicts to statistics, tables and pages."""

from .results import Results, read_results, write_results
from .stats import paired_difference

__all__ = [
    "Results",
    "paired_difference",
    "read_results",
    "write_results",
]
