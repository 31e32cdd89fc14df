"""Annotation types: how a row's annotation is read, drawn and described to the teacher."""

from .registry import (
    TYPES,
    AnnotationType,
    CheckedType,
    DrawnType,
    annotation_type,
    forms,
    register,
    type_names,
)

__all__ = [
    "TYPES",
    "AnnotationType",
    "CheckedType",
    "DrawnType",
    "annotation_type",
    "forms",
    "register",
    "type_names",
]
