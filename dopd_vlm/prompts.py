"""Sample -> PromptPair of chat messages: the only file with prompt wording.

The privileged messages are the plain ones with the privileged context in the last user turn (or the
system turn, where the recipe says so) and the privileged pictures in place of the plain ones; history
and question text are the same in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from dopd_vlm.types import Message, PromptPair, Sample, ViewName

PLACEHOLDER = "<image>"


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """Wording around the question; the paper does not state its own (its Fig. 13 is a picture)."""

    question: str = "{question}"
    """Plain wording of an open question, in both views."""
    choice: str = "{question}\n{options}\nAnswer with the option's letter from the given choices."
    """Plain wording of a multiple-choice question, in both views; options are `A. text` lines."""
    privileged: str = "{question}\n\nReference:\n{context}"
    """The privileged turn: `{question}` is the plain wording, `{context}` the rendered annotations."""
    placement: Literal["user", "system"] = "user"
    """Whose turn holds the context; in the system turn, `privileged` stands without the question, behind
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


def question_text(sample: Sample, template: PromptTemplate) -> str:
    """The question as both views word it, `<image>` placeholders included."""
    if sample.choices is None:
        return template.question.replace("{question}", sample.question)
    options = "\n".join(f"{letter}. {text}" for letter, text in sample.choices.items())
    return template.choice.replace("{options}", options).replace("{question}", sample.question)


def build_prompts(sample: Sample, template: PromptTemplate | None = None) -> PromptPair:
    """Both views' messages for one sample; with an empty context and equal pictures they are equal."""
    template = template or PromptTemplate()
    return PromptPair(
        uid=sample.uid,
        plain=_messages(sample, "plain", template),
        privileged=_messages(sample, "privileged", template),
    )


def _messages(sample: Sample, name: ViewName, template: PromptTemplate) -> list[Message]:
    view, text = sample.view(name), question_text(sample, template)
    system_text = sample.system or ""
    if view.context and template.placement == "user":
        text = template.privileged.replace("{context}", view.context).replace("{question}", text)
    elif view.context:
        wording = template.privileged.replace("{question}", "").strip()
        told = wording.replace("{context}", view.context)
        system_text = f"{system_text}\n\n{told}".strip()
    system = [{"role": "system", "content": system_text}] if system_text else []
    return [*system, *sample.history, {"role": "user", "content": _content(text, view.images)}]


def _content(text: str, images: Sequence[Image.Image]) -> str | list[dict[str, Any]]:
    """Blocks with one picture per placeholder in order; pictures without a placeholder go first.

    Text-only chat templates accept a string only, so a turn without pictures is one.
    """
    pieces = text.split(PLACEHOLDER)
    if not images:
        return "".join(pieces)
    num_inline = min(len(pieces) - 1, len(images))
    blocks: list[dict[str, Any]] = [_image(image) for image in images[num_inline:]]
    for index, piece in enumerate(pieces):
        if piece:
            blocks.append({"type": "text", "text": piece})
        if index < num_inline:
            blocks.append(_image(images[index]))
    return blocks


def _image(image: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": image}
