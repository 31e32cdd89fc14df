"""Benchmarks: their YAML files, their rows and answer forms."""

from .benchmark import (
    SUITES,
    Benchmark,
    Generation,
    benchmark_names,
    load_benchmark,
)

__all__ = [
    "SUITES",
    "Benchmark",
    "Generation",
    "benchmark_names",
    "load_benchmark",
]
