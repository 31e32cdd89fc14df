"""Embedded sets and models: generated, shipped, no download."""

from .sets import ASSETS, MODELS, embedded_model, embedded_rows, is_embedded

__all__ = [
    "ASSETS",
    "MODELS",
    "embedded_model",
    "embedded_rows",
    "is_embedded",
]
