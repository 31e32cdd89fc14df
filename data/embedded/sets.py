"""What ships with the package: `embedded:...` names of row sets and models."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dopd_vlm.errors import unknown

from . import lists, scenes, shapes

PREFIX = "embedded:"
ASSETS = Path(__file__).parents[1] / "assets"
MODELS = ("teacher_vl", "student_vl", "teacher_text", "student_text")
TRAIN_ROWS = 2000
"""Rows of a generated split when the source names no `num`."""
GENERATORS: dict[str, Callable[..., Sequence[dict[str, Any]]]] = {
    "shapes": shapes.rows,
    "lists": lists.rows,
    "scenes": scenes.rows,
}
OPTIONS = {
    "shapes": {"num": int, "seed": int, "dim": float},
    "lists": {"num": int, "seed": int},
    "scenes": {"num": int, "seed": int},
}


def is_embedded(name: str) -> bool:
    """Whether a source or model path names something that ships with the package."""
    return name.startswith(PREFIX)


def embedded_model(name: str) -> Path:
    """The folder of a shipped checkpoint, `embedded:` in front or not.

    Raises:
        ValueError: unknown name.
    """
    bare = name.removeprefix(PREFIX)
    _check_known("embedded model", bare, MODELS)
    return ASSETS / bare


def shipped_folder(name: str, split: str) -> Path | None:
    """The folder of a shipped split, or None for one that is generated when asked for."""
    folder = ASSETS / {"test": name, "shifted": f"{name}_shifted"}.get(split, "-")
    return folder if folder.is_dir() else None


def embedded_rows(source: str) -> Sequence[dict[str, Any]]:
    """The rows of `embedded:NAME/SPLIT?num=N&seed=S`, NAME one of shapes, lists and scenes.

    `embedded:shapes/train?num=2000&seed=0` is generated; `embedded:shapes/test` and
    `embedded:shapes/shifted` ship, and their rows name their folder under `origin.root`, as rows
    that were read from disk do. `num` takes the first rows of those. Scenes are composed one at a
    time, when a row is asked for.

    Raises:
        ValueError: unknown name, split or option, or an option that is no number.
    """
    path, _, query = source.removeprefix(PREFIX).partition("?")
    name, _, split = path.partition("/")
    _check_known("embedded set", name, tuple(GENERATORS))
    _check_known(f"split of embedded:{name}", split, shapes.SPLITS)
    options = _options(source, name, query)
    folder = shipped_folder(name, split)
    if folder is None or options.keys() - {"num"}:
        num = options.pop("num", TRAIN_ROWS)
        return GENERATORS[name](split, num, **options)
    return _read(folder)[: options.get("num")]


def _read(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metadata.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    return [
        {
            **json.loads(line),
            "origin": {"file": str(file), "line": number, "root": str(folder)},
        }
        for number, line in enumerate(lines, start=1)
    ]


def _options(source: str, name: str, query: str) -> dict[str, Any]:
    options = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        _check_known(f"option of embedded:{name}", key, tuple(OPTIONS[name]))
        try:
            options[key] = OPTIONS[name][key](value)
        except ValueError as error:
            raise ValueError(f"{source!r}: {key}={value!r} is no number") from error
        if options[key] < 0:
            raise ValueError(f"{source!r}: {key}={value!r} must not be negative")
    return options


def _check_known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise unknown(what, name, known)
