"""The commands: each parses, loads the recipe and calls one function."""

import sys
from pathlib import Path

# `python scripts/evaluate.py` puts this folder on the path, where that file hides the library `evaluate`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
