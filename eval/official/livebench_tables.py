"""LiveBench's tablereformat: the answer, read in the asked format, is the right table."""

import json
import math
import re
from io import StringIO
from typing import Any

import pandas

FORMATS = {
    "csv": lambda text: pandas.read_csv(StringIO(text)),
    "tsv": lambda text: pandas.read_csv(StringIO(text), sep="\t"),
    "jsonl": lambda text: pandas.DataFrame([json.loads(line) for line in _lines(text)]),
    "json": lambda text: _from_json(text),
    "html": lambda text: pandas.concat(pandas.read_html(StringIO(text)), axis=0),
    "markdown": lambda text: _from_markdown(text),
}
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError)
"""What reading a text that is no table of its format may raise; pandas' own errors are ValueErrors."""
CLOSE = 1e-6


def table_score(text: str, gold: str, question: str) -> float | None:
    """1 when columns, order of rows and cells agree; order of columns and numbers' form do not count.

    Raises:
        ValueError: the question names no known format, or gold is no table of it.
    """
    wanted = re.findall(r"(?:format to |Target Format: )\s*(\w+)", question)
    kind = wanted[-1].lower() if wanted else ""
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r} is not one of {', '.join(FORMATS)}")
    right = _cells(FORMATS[kind](gold))
    for part in _parts(text, gold, kind):
        try:
            cells = _cells(FORMATS[kind](part))
        except UNREADABLE:
            continue
        if len(cells) == len(right) and all(map(_is_same_row, cells, right)):
            return 1.0
    return 0.0 if text.strip() else None


def _parts(text: str, gold: str, kind: str) -> list[str]:
    """Where the table may be: the marked or fenced part, the whole, or what follows its header."""
    solutions = re.findall(r"<solution>(.*?)</solution>", text, re.DOTALL)
    text = solutions[-1] if solutions else text
    blocks = re.findall(r"```[^\n`]*\n(.*?)```", text, re.DOTALL)
    parts = [*blocks[-1:], text.strip()]
    header = gold.strip().split("\n")[0].strip()
    if kind in ("csv", "tsv", "markdown") and header in text:
        parts.append(re.split(r"\n\s*\n", text[text.rindex(header) :])[0])
    if kind == "jsonl":
        parts.append("\n".join(line for line in _lines(text) if line.startswith("{")))
    return parts


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _from_json(text: str) -> pandas.DataFrame:
    """Rows by any key, a list of rows, or one row a line."""
    try:
        value = json.loads(text)
    except ValueError:
        return FORMATS["jsonl"](text)
    rows = value.get("data", list(value.values())) if isinstance(value, dict) else value
    return pandas.DataFrame(rows)


def _from_markdown(text: str) -> pandas.DataFrame:
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in _lines(text)]
    header, _, *body = rows
    return pandas.DataFrame(body, columns=pandas.Index(header))


def _cells(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """One dict a row, without the column `index` that some formats add."""
    return [
        {str(name).strip(): value for name, value in row.items() if str(name).strip() != "index"}
        for row in table.to_dict("records")
    ]


def _is_same_row(row: dict[str, Any], gold: dict[str, Any]) -> bool:
    return row.keys() == gold.keys() and all(_is_same(row[name], gold[name]) for name in gold)


def _is_same(cell: Any, gold: Any) -> bool:
    try:
        one, other = (math.nan if value is None else float(value) for value in (cell, gold))
    except (TypeError, ValueError):
        return str(cell).strip() == str(gold).strip()
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) < CLOSE
