"""A self-contained HTML page of what the student sees, what the teacher sees and what is trained on."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image

from dopd_vlm.data_uri import image_uri
from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import Message, Sample, View, ViewName

from .views import Skipped

LONGEST_SIDE = 900
"""Pixels to which larger pictures are scaled down on the page."""
SMALL_SIDE = 128
"""Smaller pictures are enlarged on the page, pixel by pixel."""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1280px;padding:1rem;color:#1a1a1a}
h1{font-size:1.35rem;overflow-wrap:anywhere}
article{border:1px solid #bbb;border-radius:6px;margin:1rem 0;padding:.8rem 1rem;min-width:0}
h2{font-size:1rem;margin:0;overflow-wrap:anywhere}h3{font-size:.85rem;margin:.4rem 0;color:#444}
nav{display:flex;flex-wrap:wrap;gap:.15rem .9rem;font-size:.85rem;overflow-wrap:anywhere}
.views{display:grid;grid-template-columns:1fr 1fr;gap:1rem}.views>div{min-width:0}
figure{display:inline-block;margin:0 .6rem .4rem 0;max-width:100%;vertical-align:top}
figcaption{font-size:.78rem;color:#555}
img{max-width:100%;min-width:96px;border:1px solid #ddd;image-rendering:auto;display:block}
img.small{image-rendering:pixelated;width:192px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.5rem;border-radius:4px;
  font-size:.85rem;margin:.3rem 0}
mark{background:#ffe9a8}b.token{color:#0060a0;font-weight:600}
details{margin:.5rem 0}summary{cursor:pointer;font-size:.9rem}
.mask{font:.82rem/1.9 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere;margin:.3rem 0}
.mask span{border:1px solid #ddd;border-radius:3px;padding:0 .2rem;margin-right:.15rem;color:#666;
  white-space:pre-wrap}
.mask .on{background:#009E73;border-color:#007a59;color:#fff}
.rollout .tm-views,.rollout label:has(.tm-probe),.rollout .tm-slide{display:none}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:left;
  overflow-wrap:anywhere}
@media(max-width:700px){.views{grid-template-columns:1fr}body{padding:.5rem}article{padding:.6rem}}
"""


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """One token of prompt and completion."""

    text: str
    is_trained: bool
    """Whether the loss counts it."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Both prompts of a sample as text, and what a processor tells of them where there is one."""

    plain: str
    privileged: str
    num_tokens: tuple[int, int] | None = None
    """Tokens of the plain and of the privileged prompt."""
    special: tuple[str, ...] = ()
    """The tokenizer's special tokens."""
    sequence: tuple[ShownToken, ...] = ()
    """The plain prompt and a completion, as the student is trained on them."""


def readable_prompts(sample: Sample) -> Prompts:
    """The messages as text, without a chat template."""
    pair = build_prompts(sample)
    return Prompts(plain=_as_text(pair.plain), privileged=_as_text(pair.privileged))


def preview_page(
    title: str,
    samples: Sequence[Sample],
    prompts: Sequence[Prompts],
    skipped: Sequence[Skipped] = (),
    rollouts: Mapping[str, str] | None = None,
) -> str:
    """The page as HTML that needs no other file: pictures are inside.

    Everything that comes from a row is escaped. Without rollouts there are no scripts.

    Args:
        title: heading.
        samples: what to show, a card each.
        prompts: of each sample.
        skipped: rows that made no sample.
        rollouts: uid -> HTML of the sample's token map, put into its card as it is.
    """
    found = rollouts or {}
    cards = [
        _card(number, sample, text, found.get(sample.uid, ""))
        for number, (sample, text) in enumerate(zip(samples, prompts, strict=True), start=1)
    ]
    links = [
        f'<a href="#row-{number}">{html.escape(sample.uid)}</a>'
        for number, sample in enumerate(samples, start=1)
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p>{len(samples)} rows. Left: the plain view, all that the "
        "student is given. Right: the privileged view, for scoring only; what it adds to the text "
        f"is <mark>marked</mark>.</p><nav>{''.join(links)}</nav>{_left_out(skipped)}"
        f"{''.join(cards)}</body></html>"
    )


def _left_out(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return ""
    lines = [
        f"<tr><td>{html.escape(row.uid)}</td><td>{html.escape(row.reason)}</td></tr>"
        for row in skipped
    ]
    return f"<h2>{len(skipped)} rows left out</h2><table>{''.join(lines)}</table>"


def _card(number: int, sample: Sample, prompts: Prompts, rollout: str) -> str:
    counts = prompts.num_tokens or (None, None)
    left = _view("plain", sample.plain, prompts, prompts.plain, counts[0])
    right = _view("privileged", sample.privileged, prompts, prompts.privileged, counts[1])
    shown = f'<div class="rollout"><h3>rollout</h3>{rollout}</div>' if rollout else ""
    return (
        f'<article id="row-{number}"><h2>'
        f"{html.escape(sample.uid)}</h2>"
        f"<p>answer ({html.escape(sample.answer_type)}): <b>{html.escape(sample.answer)}</b></p>"
        f'<div class="views">{left}{right}</div>{_mask(prompts.sequence)}{shown}</article>'
    )


def _view(name: ViewName, view: View, prompts: Prompts, text: str, num_tokens: int | None) -> str:
    head = name if num_tokens is None else f"{name}, {num_tokens} tokens"
    pictures = "".join(_picture(image) for image in view.images) or "<p>no picture</p>"
    marked = _marked(text, view.context, prompts.special)
    return f"<div><h3>{head}</h3>{pictures}<pre>{marked}</pre></div>"


def _marked(text: str, context: str, special: Sequence[str]) -> str:
    """Escaped text with special tokens and the privileged context standing out.

    White space may differ: a tokenizer of whole words puts its own between them.
    """
    pieces = [re.escape(piece) for piece in re.findall(r"\w+|[^\w\s]", context)]
    found = list(re.finditer(r"\s*".join(pieces), text)) if pieces else []
    if not found:
        return _tokens(text, special)
    # The question may hold the same words; the context comes behind it.
    start, end = found[-1].span()
    parts = [_tokens(part, special) for part in (text[:start], text[start:end], text[end:])]
    return f"{parts[0]}<mark>{parts[1]}</mark>{parts[2]}"


def _tokens(text: str, special: Sequence[str]) -> str:
    """Escaped, special tokens bold, and runs of one written as `<token> x N`."""
    one = "|".join([r"<\|\w+\|>", *(re.escape(token) for token in special if token)])
    shown, end = [], 0
    for run in re.finditer(rf"({one})(?: ?\1)*", text):
        token = html.escape(run[1])
        count = run[0].count(run[1])
        shown.append(html.escape(text[end : run.start()]))
        shown.append(f'<b class="token">{token}</b>{f" x {count} " if count > 1 else ""}')
        end = run.end()
    return "".join([*shown, html.escape(text[end:])])


def _mask(sequence: Sequence[ShownToken]) -> str:
    """Prompt and completion token by token: what the loss counts is filled, the rest is outlined."""
    if not sequence:
        return ""
    spans = []
    for token, run in groupby(sequence):
        count = len(list(run))
        many = f" x {count}" if count > 2 else ""
        text = html.escape(token.text).replace("\n", "\u21b5\n")
        css = ' class="on"' if token.is_trained else ""
        spans += [f"<span{css}>{text}{many}</span>\u200b"] * (count if count == 2 else 1)
    trained = sum(token.is_trained for token in sequence)
    return (
        f"<details><summary>completion mask: {trained} of {len(sequence)} tokens are trained on"
        f'</summary><div class="mask">{"".join(spans)}</div></details>'
    )


def _picture(image: Image.Image) -> str:
    shown = image.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    is_small = max(image.size) < SMALL_SIDE
    kind, options = ("png", {}) if is_small else ("jpeg", {"quality": 90})
    small = ' class="small"' if is_small else ""
    size = f"{image.width} x {image.height}"
    return (
        f'<figure><img{small} alt="{size} pixels" src="{image_uri(shown, kind, **options)}">'
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
