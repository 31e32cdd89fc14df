"""What no text of a row may hold, as a model would read it as something else than text."""

import re
from collections.abc import Iterator

from dopd_vlm.types import Sample

CONTROL_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,40}\|>"
    r"|<(?:start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|IMG_CONTEXT|img|/img"
    r"|fake_token_around_image|global-img|end_of_utterance)>"
)
"""Turns, images and ends as the chat templates of Qwen, Llama, Gemma, InternVL and SmolVLM write them.
Each tokenizer refuses its own further ones when a prompt is encoded."""

PRIVILEGED = "the privileged text"


def check_words(sample: Sample) -> None:
    """Refuses a sample whose text no tokenizer takes, or would take for a turn or an image.

    Raises:
        ValueError: NUL, half a surrogate pair, or a control token such as `<|im_end|>`, and where.
    """
    check_text("the answer", sample.answer)
    for field, text in _texts(sample):
        check_text(field, text, nul=field == PRIVILEGED)
        token = CONTROL_TOKEN.search(text)
        if token:
            raise ValueError(
                f"{field} holds {token[0]!r}, which models read as a turn or an image and not as "
                "text: write it in other words"
            )


def check_text(field: str, text: str, *, nul: bool = False) -> None:
    """ValueError for a lone surrogate, which JSON can escape but no tokenizer takes, and for NUL
    unless `nul`: in what both models read it is a slip, in text read off images it is noise."""
    if not nul and "\0" in text:
        raise ValueError(f"{field} holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} is no valid Unicode: {error}") from error


def _texts(sample: Sample) -> Iterator[tuple[str, str]]:
    """(field, text) of all that a prompt may hold."""
    yield "the question", sample.question
    yield "system", sample.system or ""
    yield PRIVILEGED, sample.privileged.context
    for turn in sample.history:
        yield "an earlier turn", str(turn["content"])
    for letter, text in (sample.choices or {}).items():
        yield f"option {letter}", f"{letter} {text}"
