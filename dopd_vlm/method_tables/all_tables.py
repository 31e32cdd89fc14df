"""All built-in tables in one tuple."""

from dopd_vlm.method_tables import paper

METHODS = (*paper.METHODS,)
