"""Annotation types: how a row's annotation is read, drawn and described to the teacher.

What an author of a type needs is handed on here: reading entries, coordinates, drawing.
"""

from ..coords import Frame, encode
from .disclosure import disclosed
from .drawing import draw_boxes, draw_dots, draw_masks, draw_numbers, draw_tags
from .parsing import check_inside, describe_by_image, entries, image_index, label_of, numbers
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
    "Frame",
    "annotation_type",
    "check_inside",
    "describe_by_image",
    "disclosed",
    "draw_boxes",
    "draw_dots",
    "draw_masks",
    "draw_numbers",
    "draw_tags",
    "encode",
    "entries",
    "forms",
    "image_index",
    "label_of",
    "numbers",
    "register",
    "type_names",
]
