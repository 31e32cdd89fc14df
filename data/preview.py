"""A self-contained HTML page of what the student sees, what the teacher sees and what is trained on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup
from PIL import Image

from dopd_vlm.data_uri import thumbnail_uri
from dopd_vlm.prompts import build_prompts
from dopd_vlm.report.html import render
from dopd_vlm.types import Message, Sample, View, ViewName

from .views import Skipped

LONGEST_SIDE = 900
"""Pixels to which larger images are scaled down on the page."""
SMALL_SIDE = 128
"""Smaller images are enlarged on the page, pixel by pixel."""


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """One token of prompt and completion."""

    text: str
    is_trained: bool
    """Whether the loss counts it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of text of one look."""

    text: str
    is_on: bool = False
    """A special token, or in a mask a token that is trained on."""
    count: int = 1
    """How many of it follow each other."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pieces of a prompt, marked where only the privileged view has them."""

    pieces: Sequence[Piece]
    is_marked: bool = False


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
    """The page as HTML that needs no other file: images are inside.

    Everything that comes from a row is escaped. Without rollouts there are no scripts.

    Args:
        title: heading.
        samples: what to show, a card each.
        prompts: of each sample.
        skipped: rows that made no sample.
        rollouts: uid -> HTML of the sample's token map, put into its card as it is.
    """
    pages = rollouts or {}
    cards = [
        _card(sample, text, pages.get(sample.uid, ""))
        for sample, text in zip(samples, prompts, strict=True)
    ]
    return render("preview.html", title=title, cards=cards, skipped=skipped)


def _card(sample: Sample, prompts: Prompts, rollout: str) -> dict[str, Any]:
    counts = prompts.num_tokens or (None, None)
    return {
        "sample": sample,
        "views": [
            _view("plain", sample.plain, prompts, prompts.plain, counts[0]),
            _view("privileged", sample.privileged, prompts, prompts.privileged, counts[1]),
        ],
        "mask": _mask(prompts.sequence),
        "num_trained": sum(token.is_trained for token in prompts.sequence),
        "num_tokens": len(prompts.sequence),
        "rollout": Markup(rollout),
    }


def _view(
    name: ViewName, view: View, prompts: Prompts, text: str, num_tokens: int | None
) -> dict[str, Any]:
    return {
        "title": name if num_tokens is None else f"{name}, {num_tokens} tokens",
        "images": list(map(_image, view.images)),
        "parts": _parts(text, view.context, prompts.special),
    }


def _parts(text: str, context: str, special: Sequence[str]) -> list[Part]:
    """The text with the privileged context as a part of its own.

    White space may differ: a tokenizer of whole words puts its own between them.
    """
    words = [re.escape(piece) for piece in re.findall(r"\w+|[^\w\s]", context)]
    places = list(re.finditer(r"\s*".join(words), text)) if words else []
    if not places:
        return [Part(pieces=_pieces(text, special))]
    # The question may hold the same words; the context follows it.
    start, end = places[-1].span()
    return [
        Part(pieces=_pieces(text[:start], special)),
        Part(pieces=_pieces(text[start:end], special), is_marked=True),
        Part(pieces=_pieces(text[end:], special)),
    ]


def _pieces(text: str, special: Sequence[str]) -> list[Piece]:
    """Text and special tokens in turn, a run of one token as one piece."""
    one = "|".join([r"<\|\w+\|>", *(re.escape(token) for token in special if token)])
    pieces, end = [], 0
    for run in re.finditer(rf"({one})(?: ?\1)*", text):
        pieces.append(Piece(text=text[end : run.start()]))
        pieces.append(Piece(text=run[1], is_on=True, count=run[0].count(run[1])))
        end = run.end()
    return [*pieces, Piece(text=text[end:])]


def _mask(sequence: Sequence[ShownToken]) -> list[Piece]:
    """Prompt and completion token by token; what the loss counts is on, and long runs of one token are one piece."""
    pieces = []
    for token, run in groupby(sequence):
        count = len(list(run))
        text = token.text.replace("\n", "\u21b5\n")
        many = count if count > 2 else 1
        piece = Piece(text=text, is_on=token.is_trained, count=many)
        pieces += [piece] * (count if count == 2 else 1)
    return pieces


def _image(image: Image.Image) -> dict[str, Any]:
    is_small = max(image.size) < SMALL_SIDE
    return {
        "uri": thumbnail_uri(image, LONGEST_SIDE),
        "size": f"{image.width} x {image.height}",
        "is_small": is_small,
    }


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
