"""All built-in tables in one tuple."""

from dopd_vlm.method_tables import (
    adaptive,
    contrast,
    floors,
    paper,
    self_distillation,
    standard,
)

METHODS = (
    *paper.METHODS,
    *standard.METHODS,
    *self_distillation.METHODS,
    *adaptive.METHODS,
    *contrast.METHODS,
    *floors.METHODS,
)
