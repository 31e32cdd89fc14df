"""The built-in methods, a file for each kind, and what a method is (table.py)."""

from dopd_vlm.method_tables.all_tables import METHODS
from dopd_vlm.method_tables.table import Method, dropped, uniform

__all__ = ["METHODS", "Method", "dropped", "uniform"]
