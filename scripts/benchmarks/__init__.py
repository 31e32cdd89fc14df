"""Time and memory, measured; `bench.py` calls these."""
