"""Benchmarks: their YAML files, their rows and answer forms."""

from .benchmark import (
    SUITES,
    Benchmark,
    benchmark_names,
    load_benchmark,
)

__all__ = [
    "SUITES",
    "Benchmark",
    "benchmark_names",
    "load_benchmark",
]
