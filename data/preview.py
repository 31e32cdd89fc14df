"""A self-contained HTML page of what the student sees and what the teacher sees."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import Message, Sample, View, ViewName

from .views import Skipped

LONGEST_SIDE = 900
"""Pixels to which larger pictures are scaled down on the page."""
SMALL_SIDE = 128
"""Smaller pictures are enlarged on the page, pixel by pixel."""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1280px;padding:1rem;color:#1a1a1a}
article{border:1px solid #bbb;border-radius:6px;margin:1rem 0;padding:.8rem 1rem}
h2{font-size:1rem;margin:0}h3{font-size:.85rem;margin:.4rem 0;color:#444}
.views{display:grid;grid-template-columns:1fr 1fr;gap:1rem}.views>div{min-width:0}
img{max-width:100%;min-width:96px;border:1px solid #ddd;image-rendering:auto}
img.small{image-rendering:pixelated;width:192px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.5rem;border-radius:4px}
mark{background:#ffe9a8}b.token{color:#0072b2;font-weight:600}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:left}
@media(max-width:700px){.views{grid-template-columns:1fr}}
"""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Both prompts of a sample as text, and how many tokens each has where that is known."""

    plain: str
    privileged: str
    num_tokens: tuple[int, int] | None = None


def readable_prompts(sample: Sample) -> Prompts:
    """The messages as text, without a chat template."""
    pair = build_prompts(sample)
    return Prompts(plain=_as_text(pair.plain), privileged=_as_text(pair.privileged))


def preview_page(
    title: str,
    samples: Sequence[Sample],
    prompts: Sequence[Prompts],
    skipped: Sequence[Skipped] = (),
) -> str:
    """The page as HTML that needs no other file: pictures are inside, there are no scripts.

    Everything that comes from a row is escaped.
    """
    cards = [_card(sample, text) for sample, text in zip(samples, prompts, strict=True)]
    bad = ""
    if skipped:
        lines = [
            f"<tr><td>{html.escape(row.uid)}</td><td>{html.escape(row.reason)}</td></tr>"
            for row in skipped
        ]
        bad = f"<h2>{len(skipped)} rows left out</h2><table>{''.join(lines)}</table>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p>{len(samples)} rows. Left: the plain view, all that the "
        "student is given. Right: the privileged view, for scoring only; what it adds to the text "
        f"is <mark>marked</mark>.</p>{bad}{''.join(cards)}</body></html>"
    )


def _card(sample: Sample, prompts: Prompts) -> str:
    counts = prompts.num_tokens or (None, None)
    left = _view("plain", sample.plain, prompts.plain, "", counts[0])
    right = _view(
        "privileged", sample.privileged, prompts.privileged, sample.privileged.context, counts[1]
    )
    return (
        f'<article id="{html.escape(sample.uid)}"><h2>{html.escape(sample.uid)}</h2>'
        f"<p>answer ({html.escape(sample.answer_type)}): <b>{html.escape(sample.answer)}</b></p>"
        f'<div class="views">{left}{right}</div></article>'
    )


def _view(name: ViewName, view: View, text: str, context: str, num_tokens: int | None) -> str:
    head = name if num_tokens is None else f"{name}, {num_tokens} tokens"
    pictures = "".join(_picture(image) for image in view.images) or "<p>no picture</p>"
    return f"<div><h3>{head}</h3>{pictures}<pre>{_marked(text, context)}</pre></div>"


def _marked(text: str, context: str) -> str:
    """Escaped text with special tokens and the privileged context standing out."""
    before, found, after = text.partition(context) if context else (text, "", "")
    parts = [_tokens(before), f"<mark>{_tokens(found)}</mark>" if found else "", _tokens(after)]
    return "".join(parts)


def _tokens(text: str) -> str:
    collapsed = re.sub(
        r"(<\|[a-z_]+\|>)\1+",
        lambda found: f"{found.group(1)} x {len(found.group(0)) // len(found.group(1))} ",
        text,
    )
    return re.sub(r"(&lt;\|\w+\|&gt;)", r'<b class="token">\1</b>', html.escape(collapsed))


def _picture(image: Image.Image) -> str:
    shown = image.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    is_small = max(image.size) < SMALL_SIDE
    kind, options = ("png", {}) if is_small else ("jpeg", {"quality": 90})
    buffer = io.BytesIO()
    shown.save(buffer, kind, **options)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    small = ' class="small"' if is_small else ""
    size = f"{image.width} x {image.height}"
    return (
        f'<figure><img{small} alt="{size} pixels" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{size}</figcaption></figure>"
    )


def _as_text(messages: Sequence[Message]) -> str:
    lines = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            blocks = [
                block["text"] if block["type"] == "text" else "<|image|>" for block in content
            ]
            content = "".join(blocks)
        lines.append(f"<|{message['role']}|>\n{content}")
    return "\n".join(lines)
