"""A benchmark's own row -> a row in this project's schema, as the task's `columns` say.

`columns` maps question, answer, choices, images, uid, cluster, category and kind to the benchmark's
column names; choices and images may be lists of columns.
"""

import ast
import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from .benchmarks import Benchmark

Row = Mapping[str, Any]
PICTURE = re.compile(r"<image[ _]?(\d+)>")


def to_rows(task: Benchmark, raw: Sequence[Row]) -> list[dict[str, Any]]:
    """The task's rows in this project's schema; unchanged where the task names no columns.

    Raises:
        ValueError: a column that the first row lacks, naming those it has.
    """
    if not task.columns:
        return [dict(row) for row in raw]
    _check_columns(task, raw[0] if raw else {})
    return [to_row(task, row, index) for index, row in enumerate(raw)]


def to_row(task: Benchmark, raw: Row, index: int) -> dict[str, Any]:
    """One row; `index` makes its uid and seeds the option order where the benchmark has none.

    Raises:
        ValueError: a missing column, or an answer that cannot be read in the task's `answer_form`.
    """
    uid = f"{task.name}-{_get(task, raw, 'uid', index)}"
    choices = _choices(_get(task, raw, "choices", None))
    answer = _get(task, raw, "answer", "")
    if task.answer_form == "first_choice":
        choices, answer = _shuffled([str(answer), *choices.values()], f"{task.name}-{index}")
    else:
        answer = _answer(task, answer, choices, uid)
    images = _images(_get(task, raw, "images", None))
    is_choice = bool(choices) and (task.answer_type in ("choice", "row"))
    return {
        "uid": uid,
        "images": images,
        "question": _with_places(_text(_get(task, raw, "question", "")), len(images)),
        "answer": answer,
        "answer_type": "choice" if is_choice else _kind(task, answer),
        "choices": choices if is_choice else None,
        "meta": {
            "source": task.rows,
            "split": task.split,
            "cluster": _get(task, raw, "cluster", None),
            "category": _get(task, raw, "category", None),
        },
        "origin": raw.get("origin") or {},
    }


def _kind(task: Benchmark, answer: str) -> str:
    """The row's own type, by its answer where the task says `row`.

    Letters whose options stand in the question are text to the data layer.
    """
    if task.answer_type == "row":
        is_number = re.fullmatch(r"-?[\d,]*\.?\d+%?", answer)
        return "number" if is_number else "math" if re.search(r"[\\^]", answer) else "text"
    return "text" if task.answer_type == "choice" else task.answer_type


def _get(task: Benchmark, raw: Row, field: str, default: Any) -> Any:
    column = task.columns.get(field)
    if column is None:
        return default
    if isinstance(column, list):
        return [raw[name] for name in column if name in raw]
    return _column(raw, column)


def _column(raw: Row, name: str) -> Any:
    if name == "image" and name not in raw and "images" in raw:
        return raw["images"]  # reading rows puts a single picture there
    return raw[name]


def _check_columns(task: Benchmark, raw: Row) -> None:
    named = [name for name in task.columns.values() if isinstance(name, str)]
    missing = [
        name
        for name in named
        if raw and name not in raw and not (name == "image" and "images" in raw)
    ]
    if missing:
        raise ValueError(
            f"task {task.name!r}: rows have no column {' or '.join(map(repr, missing))}; "
            f"they have: {', '.join(raw)}"
        )


def _choices(raw: Any) -> dict[str, str]:
    """{letter: text} of a list, a list written as text, or a {letter: text} mapping."""
    if isinstance(raw, str):
        raw = ast.literal_eval(raw) if raw.strip() else []
    if isinstance(raw, Mapping):
        return {str(key): str(value) for key, value in raw.items() if value is not None}
    texts = [str(text) for text in raw or () if text is not None]
    return dict(zip(ascii_uppercase, texts, strict=False))


def _shuffled(texts: Sequence[str], seed: str) -> tuple[dict[str, str], str]:
    """Options in an order that depends on the question alone, and the letter of the first one."""
    order = list(range(len(texts)))
    number = int(hashlib.sha256(seed.encode()).hexdigest()[:12], 16)
    random.Random(number).shuffle(order)
    choices = {ascii_uppercase[place]: texts[one] for place, one in enumerate(order)}
    return choices, ascii_uppercase[order.index(0)]


def _answer(task: Benchmark, raw: Any, choices: Mapping[str, str], uid: str) -> str:
    if task.answer_form == "tests":
        prompt, tests, entry_point = raw
        return f"{prompt}{{completion}}\n\n{tests}\n\ncheck({entry_point})\n"
    text = str(raw[0] if isinstance(raw, list) and raw else raw).strip()
    if task.answer_form == "index" and choices:
        return list(choices)[int(text)]
    if task.answer_form == "hashes":
        return text.rpartition("####")[2].strip()
    if task.answer_form == "parens":
        return text.strip("().")
    if task.answer_form == "option" and choices and text not in choices:
        found = [letter for letter, option in choices.items() if option.strip() == text]
        if len(found) != 1:
            raise ValueError(f"row {uid!r}: answer {text!r} is not one of {list(choices.values())}")
        return found[0]
    return text


def _text(raw: Any) -> str:
    """A question spread over several columns is joined by blank lines."""
    return "\n\n".join(map(str, raw)) if isinstance(raw, list) else str(raw)


def _images(raw: Any) -> list[Any]:
    if raw is None:
        return []
    return [image for image in (raw if isinstance(raw, list) else [raw]) if image is not None]


def _with_places(question: str, num_images: int) -> str:
    """`<image 1>` as `<image>` where every picture has its place in order, else as plain words."""
    question = question.replace("<image>", "").strip() if "<image>" in question else question
    places = [int(number) for number in PICTURE.findall(question)]
    if places and places == list(range(1, num_images + 1)):
        return PICTURE.sub("<image>", question)
    return PICTURE.sub(r"picture \1", question)
