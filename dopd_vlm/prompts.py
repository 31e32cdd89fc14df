"""Sample -> Prompts, chat messages of each view: the only file with prompt wording.

The privileged messages are the plain ones with the privileged context in the last user turn (or the
system turn, where the recipe says so) and the privileged images in place of the plain ones; history
and question text are the same in both. What a row says is never filled or split itself: `{question}`
in a caption and `<image>` in an option stay the text that they are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Literal

from PIL import Image

from dopd_vlm.types import Message, Prompts, Sample, ViewName

PLACEHOLDER = "<image>"


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """Wording around the question; the paper does not state its own (its Fig. 13 is an image)."""

    question: str = "{question}"
    """Plain wording of an open question, in both views."""
    choice: str = "{question}\n{options}\nAnswer with the option's letter from the given choices."
    """Plain wording of a multiple-choice question, in both views; options are `A. text` lines."""
    privileged: str = "{question}\n\nReference:\n{context}"
    """The privileged turn: `{question}` is the plain wording, `{context}` the rendered annotations."""
    placement: Literal["user", "system"] = "user"
    """Whose turn holds the context; in the system turn, `privileged` stands without the question, after
    the row's own system text."""

    def __post_init__(self) -> None:
        for name, needed in (
            ("question", ["{question}"]),
            ("choice", ["{question}", "{options}"]),
            ("privileged", ["{question}", "{context}"]),
        ):
            missing = [field for field in needed if field not in getattr(self, name)]
            if missing:
                raise ValueError(
                    f"prompts.{name} lacks {', '.join(missing)}: {getattr(self, name)!r}"
                )


Piece = str | None
"""A part of a turn: text, or None for the place of an image."""


def question_text(sample: Sample, template: PromptTemplate) -> str:
    """The question as both views word it, `<image>` placeholders included."""
    return "".join(PLACEHOLDER if p is None else p for p in _question(sample, template))


def build_prompts(sample: Sample, template: PromptTemplate | None = None) -> Prompts:
    """All views' messages for one sample; views with equal contexts and images are equal."""
    template = template or PromptTemplate()
    return Prompts(
        uid=sample.uid,
        plain=_messages(sample, "plain", template),
        privileged=_messages(sample, "privileged", template),
        more={name: _messages(sample, name, template) for name in sample.views},
    )


def _messages(sample: Sample, name: ViewName, template: PromptTemplate) -> list[Message]:
    view, turn = sample.view(name), _question(sample, template)
    system = sample.system or ""
    if view.context and template.placement == "user":
        turn = _fill(template.privileged, {"question": turn, "context": [view.context]})
    elif view.context:
        wording = template.privileged.replace("{question}", "").strip()
        told = "".join(p or "" for p in _fill(wording, {"context": [view.context]}))
        system = f"{system}\n\n{told}".strip()
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *sample.history, {"role": "user", "content": _content(turn, view.images)}]


def _question(sample: Sample, template: PromptTemplate) -> list[Piece]:
    """The question in its wording; only the row's own question has places for images."""
    first, *rest = sample.question.split(PLACEHOLDER)
    question: list[Piece] = [first]
    for text in rest:
        question += [None, text]
    if sample.choices is None:
        return _fill(template.question, {"question": question})
    options = "\n".join(f"{letter}. {text}" for letter, text in sample.choices.items())
    return _fill(template.choice, {"question": question, "options": [options]})


def _fill(template: str, values: Mapping[str, Sequence[Piece]]) -> list[Piece]:
    """The template with its fields filled in one pass: a value that holds `{question}` keeps it."""
    parts = re.split(rf"\{{({'|'.join(values)})\}}", template)
    pieces: list[Piece] = []
    for index, part in enumerate(parts):
        pieces += values[part] if index % 2 else [part]
    return pieces


def _content(pieces: Sequence[Piece], images: Sequence[Image.Image]) -> str | list[dict[str, Any]]:
    """Blocks with one image per place in order; images without a place go first.

    Text-only chat templates accept a string only, so a turn without images is one.
    """
    if not images:
        return "".join(piece or "" for piece in pieces)
    num_inline = min(sum(piece is None for piece in pieces), len(images))
    blocks = [_image(image) for image in images[num_inline:]]
    inline = iter(images[:num_inline])
    for is_place, run in groupby(pieces, key=lambda piece: piece is None):
        if is_place:
            blocks += [_image(image) for image in islice(inline, len(list(run)))]
        elif text := "".join(piece or "" for piece in run):
            blocks.append({"type": "text", "text": text})
    return blocks


def _image(image: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": image}
