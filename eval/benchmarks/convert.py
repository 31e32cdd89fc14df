"""A benchmark's own row -> a row in this project's schema, as the task's `columns` say.

`columns` maps our fields to the benchmark's columns, several in a list, `*` being the whole row: uid,
question (and `open_question`, which replaces it where a row has no options), answer, choices, images,
system.
Every other field goes into `meta` under its name, values of a list joined by slashes.
"""

import ast
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from .benchmark import Benchmark
from .forms import ANSWER_FORMS, QUESTION_FORMS, dialogue
from .video_frames import video_frames

Row = Mapping[str, Any]
IMAGE_MARK = re.compile(r"<image[ _]?(\d+)>")
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, SyntaxError, RecursionError)
"""What reading a row that is not as documented may raise."""
OWN_FIELDS = ("uid", "question", "open_question", "answer", "choices", "images", "system")
WHOLE = "*"
"""In place of a column: all of them, for answers that differ from row to row."""
PART = "part"
"""Column with the configuration or split that a row came from, where a task has several."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A task's rows in this project's schema, and why others are none."""

    rows: list[dict[str, Any]]
    problems: list[str]
    """One line for each row that has no answer or cannot be read."""
    left_out: int = 0
    """Rows that the task's `keep` excludes."""
    places: Sequence[int] = ()
    """Which raw row each row was made of."""


def to_rows(task: Benchmark, raw: Sequence[Row]) -> list[dict[str, Any]]:
    """The task's rows in this project's schema; unchanged where the task names no columns.

    Raises:
        ValueError: what `convert` raises, and the first row that cannot be read.
    """
    conversion = convert(task, raw)
    if conversion.problems:
        raise ValueError(conversion.problems[0])
    return conversion.rows


def convert(task: Benchmark, raw: Sequence[Row], limit: int | None = None) -> Converted:
    """The task's first `limit` good rows in this project's schema, and what is wrong with others.

    Raises:
        ValueError: a column that the first row lacks, naming those it has; no row is kept, or none
            has an answer.
    """
    if not task.columns:
        rows = [dict(row) for row in raw[:limit]]
        return Converted(rows=rows, problems=[], places=range(len(rows)))
    _check_columns(task, next((row for row in raw if not _problem(row)), {}))
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    places: list[int] = []
    left_out = 0
    for index, row in enumerate(raw):
        if limit is not None and len(rows) >= limit:
            break
        if _problem(row):
            problems.append(f"task {task.name!r} row {index + 1}: {_problem(row)}")
            continue
        if not _is_kept(task, row):
            left_out += 1
            continue
        try:
            rows.append(to_row(task, row, index))
            places.append(index)
        except UNREADABLE as error:
            reason = f"no column {error}" if isinstance(error, KeyError) else error
            problems.append(f"task {task.name!r} row {index + 1}: {reason}")
    if raw and not rows:
        raise ValueError(_nothing(task, len(raw), problems))
    return Converted(rows=rows, problems=problems, left_out=left_out, places=places)


def _problem(row: Row) -> str:
    """Why the reader of the rows could not read this one, or a uid that an earlier row has; empty for a good one."""
    origin = row.get("origin")
    if not isinstance(origin, Mapping) or "problem" not in origin:
        return ""
    return f"{origin['problem']} ({origin.get('file')} line {origin.get('line')})"


def _nothing(task: Benchmark, count: int, problems: Sequence[str]) -> str:
    if not problems:
        wanted = "; ".join(f"{name} is one of {list(values)}" for name, values in task.keep.items())
        return f"task {task.name!r} keeps rows whose {wanted}; none of the {count} is such"
    hint = f" ({task.access})" if task.access else ""
    return (
        f"none of {count} rows can be used; {problems[0]}. Where a split hides its answers, pass "
        f"rows that have them: --rows FILE{hint}"
    )


def to_row(task: Benchmark, raw: Row, index: int) -> dict[str, Any]:
    """One row; `index` makes its uid and seeds the option order where the benchmark has none.

    Raises:
        ValueError: no answer, or one that cannot be read in the task's `answer_form`.
    """
    own_id = str(_get(task, raw, "uid", index))
    choices = _choices(_get(task, raw, "choices", None))
    answer = _get(task, raw, "answer", "")
    if answer is None or answer == "" or answer == []:
        raise ValueError(f"it has no answer in column {task.columns.get('answer')!r}")
    if task.answer_form == "first_choice":
        choices, answer = _shuffled([_option(answer), *choices.values()], f"{task.name}-{index}")
    else:
        answer = ANSWER_FORMS[task.answer_form](answer, choices)
    images = _frames(task, raw) if task.frames else _images(_get(task, raw, "images", None))
    is_choice = bool(choices) and task.answer_type in ("choice", "row")
    part = raw.get(PART)
    return {
        "uid": "-".join([task.name, *([str(part)] if part else []), own_id]),
        "images": images,
        "question": _with_places(_question(task, raw, choices), len(images)),
        **_dialogue(task, raw),
        "answer": answer,
        "answer_type": "choice" if is_choice else _kind(task, answer),
        "choices": choices if is_choice else None,
        "meta": {"source": task.rows, "split": task.split, "id": own_id, **_meta(task, raw)},
        "origin": raw.get("origin") or {},
    }


def _kind(task: Benchmark, answer: str) -> str:
    """The row's own type, by its answer where the task says `row`.

    Letters whose options are in the question, and what only the task's scorer can read, are text
    to the data layer.
    """
    if task.answer_type == "row":
        is_number = re.fullmatch(r"[-+]?[\d,]*\.?\d+%?", answer)
        return "number" if is_number else "math" if re.search(r"[\\^]", answer) else "text"
    return task.answer_type if task.answer_type in ("number", "math", "box", "code") else "text"


def _question(task: Benchmark, raw: Row, choices: Mapping[str, str]) -> str:
    if task.question:
        return task.question
    field = "open_question" if not choices and "open_question" in task.columns else "question"
    return QUESTION_FORMS[task.question_form](_get(task, raw, field, ""))


def _dialogue(task: Benchmark, raw: Row) -> dict[str, Any]:
    """The system turn, the task's before the row's own; earlier turns in place of the question."""
    turns = dialogue(raw[task.columns["question"]]) if task.question_form == "dialogue" else []
    own = [turn["content"] for turn in turns if turn["role"] == "system"]
    value = _get(task, raw, "system", "")
    text = value if isinstance(value, str) else json.dumps(value, indent=4, ensure_ascii=False)
    first = [task.system.replace("{value}", text)] if task.system else []
    parts: dict[str, Any] = {"system": "\n\n".join([*first, *own]) or None}
    if turns:
        parts |= {"question": None, "messages": [one for one in turns if one["role"] != "system"]}
    return parts


def _meta(task: Benchmark, raw: Row) -> dict[str, Any]:
    values = {name: _get(task, raw, name, None) for name in task.columns if name not in OWN_FIELDS}
    return {
        name: "/".join(map(str, value)) if isinstance(value, list) else value
        for name, value in values.items()
    }


def _get(task: Benchmark, raw: Row, field: str, default: Any) -> Any:
    column = task.columns.get(field)
    if column is None:
        return default
    if isinstance(column, list):
        return [_column(raw, name) for name in column if name in raw]
    return raw if column == WHOLE else _column(raw, column)


def _column(raw: Row, name: str) -> Any:
    if name == "image" and name not in raw and "images" in raw:
        return raw["images"]  # reading rows puts a single image there
    return raw.get(name) if name == PART else raw[name]


def _is_kept(task: Benchmark, raw: Row) -> bool:
    """Dates compare by their day, the first ten characters, whatever type a table gives them."""
    return all(
        str(raw[name]) in values or str(raw[name])[:10] in values
        for name, values in task.keep.items()
    )


def _check_columns(task: Benchmark, raw: Row) -> None:
    named = [name for name in task.columns.values() if isinstance(name, str) and name != WHOLE]
    missing = [
        name
        for name in [*named, *task.keep]
        if raw and name not in raw and name != PART and not (name == "image" and "images" in raw)
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
        return {str(key): _option(value) for key, value in raw.items() if value is not None}
    if isinstance(raw, list) and len(raw) == 1 and isinstance(raw[0], list):
        raw = raw[0]  # so in validation_Accounting_29 of MMMU-Pro
    texts = [_option(text) for text in raw or () if text is not None]
    numbered = [re.match(rf"\(?{letter}[.)]\s+(?=\S)", text) for letter, text in _lettered(texts)]
    if texts and all(numbered):  # one alone may be "E. coli"
        texts = [text[match.end() :] for text, match in zip(texts, numbered, strict=True) if match]
    return dict(_lettered(texts))


def _option(raw: Any) -> str:
    """Without the line breaks that some end in; an image among the options by its number."""
    return IMAGE_MARK.sub(r"image \1", str(raw)).strip()


def _lettered(texts: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(ascii_uppercase, texts, strict=False))


def _shuffled(texts: Sequence[str], seed: str) -> tuple[dict[str, str], str]:
    """Options in an order that depends on the question alone, and the letter of the first one."""
    order = list(range(len(texts)))
    number = int(hashlib.sha256(seed.encode()).hexdigest()[:12], 16)
    random.Random(number).shuffle(order)
    choices = {ascii_uppercase[place]: texts[one] for place, one in enumerate(order)}
    return choices, ascii_uppercase[order.index(0)]


def _images(raw: Any) -> list[Any]:
    """Every image of a column, or of a list of columns that may hold lists themselves."""
    if raw is None:
        return []
    if isinstance(raw, list | tuple):
        return [image for one in raw for image in _images(one)]
    return [raw]


def _frames(task: Benchmark, raw: Row) -> list[Any]:
    """The row's own `frames`, or those of its video, which is in the folder of the rows."""
    if raw.get("frames"):
        return list(raw["frames"])
    root = (raw.get("origin") or {}).get("root")
    if root is None:
        raise ValueError("videos are looked for beside the rows: pass --rows FILE")
    name = "/".join(map(str, _get(task, raw, "images", [])))
    frames = video_frames(Path(root) / f"{name}.mp4", task.frames)
    return [str(path.relative_to(root)) for path in frames]


def _with_places(question: str, num_images: int) -> str:
    """`<image 1>` as `<image>` where every image has its place in order, else as plain words."""
    question = question.replace("<image>", "").strip() if "<image>" in question else question
    places = [int(number) for number in IMAGE_MARK.findall(question)]
    if places and places == list(range(1, num_images + 1)):
        return IMAGE_MARK.sub("<image>", question)
    return IMAGE_MARK.sub(r"image \1", question)
