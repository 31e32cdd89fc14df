"""Completions to verdicts: readers of choices, numbers, mathematics, programs."""
