"""A task's questions, or a model's answers to them, in the files of other evaluation programs.

vlmevalkit  questions  <task>.tsv, images in base64; never a `hint` column, which it would print
lmms-eval   questions  a task folder: YAML, rows, images and functions that score as here
bfcl        answers    result/<model>/..._result.json, for `bfcl evaluate`
livebench   answers    data/live_bench/<category>/<task>/model_answer/<model>.jsonl
"""

from collections.abc import Callable
from pathlib import Path

from dopd_vlm.errors import unknown

from .export_answers import bfcl, livebench
from .export_questions import Export, lmms_eval, vlmevalkit

FORMATS: dict[str, Callable[[Export], list[Path]]] = {
    "vlmevalkit": vlmevalkit,
    "lmms-eval": lmms_eval,
    "bfcl": bfcl,
    "livebench": livebench,
}


def export(kind: str, given: Export) -> list[Path]:
    """Write the files of one of FORMATS and return their paths.

    Raises:
        ValueError: unknown format, naming the near ones; no questions; answers that are missing; a
            task that is not of the format's benchmark; no model named where the files name one.
    """
    if kind not in FORMATS:
        raise unknown("export", kind, FORMATS)
    if not given.samples:
        raise ValueError(f"task {given.task.name!r}: no questions to export; check its rows")
    if not given.model and kind != "vlmevalkit":
        raise ValueError(f"export {kind} names the model: give CHECKPOINT or --model NAME")
    return FORMATS[kind](given)
