"""Pages from templates: one file each, that needs no other file and no network.

Whatever a template gets is escaped, unless it is `Markup`, which only this package's files are.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"
NUMBER = re.compile(r"[+-]?\d|-$")
"""How a cell of a number begins; a lone dash means none."""


def render(template: str, **values: Any) -> Markup:
    """The template of assets/ with these values."""
    return Markup(_environment().get_template(template).render(values))


@functools.cache
def sentence(text: str) -> Template:
    """A short text as a template, e.g. a caption; it gives plain text, which a page escapes."""
    return Environment(undefined=StrictUndefined).from_string(text)


@functools.cache
def asset(name: str) -> Markup:
    """The text of a file of assets/, as it is."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


def safe_json(value: Any) -> Markup:
    """Compact JSON that may stand inside a script element, whatever a row says."""
    text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


@functools.cache
def plotly_script() -> Markup:
    """plotly.js. Raises ValueError when plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError("a page needs plotly: pip install 'dopd-vlm[viz]'") from error
    return Markup(get_plotlyjs())


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"asset": asset, "plotly_script": plotly_script}
    environment.filters |= {"safe_json": safe_json, "anchor": _anchor}
    environment.tests |= {"numeric": _is_numeric}
    return environment


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _is_numeric(cell: str) -> bool:
    return NUMBER.match(cell) is not None


def _finite(value: Any) -> Any:
    """The same with None for what JSON does not know: inf and nan."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
