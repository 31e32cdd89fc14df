"""Benchmarks, scorers and statistics for any model in the plain or the privileged view."""
