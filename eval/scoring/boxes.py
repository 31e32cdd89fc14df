"""Boxes [x1, y1, x2, y2]: reading the last one of a text, and intersection over union."""

import re
from collections.abc import Sequence

from dopd_vlm.types import Sample

from .answers import Score, final_answer, unread

NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
FORMS = (
    # [1, 2, 3, 4], (1, 2, 3, 4), <box>1 2 3 4</box>
    rf"[\[(<>]{NUMBER}(?:,|\s){NUMBER}(?:,|\s){NUMBER}(?:,|\s){NUMBER}[\])<>]",
    # (1, 2), (3, 4) as Qwen2-VL writes; [[1, 2], [3, 4]]
    rf"[\[(]{NUMBER},{NUMBER}[\])]\s*,?\s*[\[(]{NUMBER},{NUMBER}[\])]",
    # {"x1": 1, "y1": 2, "x2": 3, "y2": 4}
    rf"[\"']?(?:x_?1|x_?min|left)[\"']?\s*[:=]{NUMBER},\s*[\"']?(?:y_?1|y_?min|top)[\"']?\s*[:=]{NUMBER},\s*"
    rf"[\"']?(?:x_?2|x_?max|right)[\"']?\s*[:=]{NUMBER},\s*[\"']?(?:y_?2|y_?max|bottom)[\"']?\s*[:=]{NUMBER}",
)
Box = tuple[float, float, float, float]


def score_box(text: str, sample: Sample, *, threshold: float = 0.5) -> Score:
    """Whether the last box of the text has an IoU >= threshold with the gold one.

    Boxes are XYXY, gold and answer in the same frame: the one the model was asked to answer in.

    Raises:
        ValueError: the gold answer is no box.
    """
    gold = last_box(sample.answer)
    if gold is None:
        raise ValueError(
            f"sample {sample.uid!r}: gold {sample.answer!r} is no box [x1, y1, x2, y2]"
        )
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    box = last_box(answer)
    if box is None:
        return unread()
    overlap = iou(box, gold)
    return Score(
        correct=float(overlap >= threshold), extracted=str(list(box)), rule=f"iou {overlap:.3f}"
    )


def last_box(text: str) -> Box | None:
    """The last box in any of FORMS; None without one, or where its sides are in the wrong order."""
    matches = [match for form in FORMS for match in re.finditer(form, text, re.IGNORECASE)]
    if not matches:
        return None
    last = max(matches, key=lambda match: match.end())
    x1, y1, x2, y2 = map(float, last.groups())
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two XYXY boxes."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)
