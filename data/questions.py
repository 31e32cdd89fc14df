"""What both models are asked: question or messages, choices, system and answer of a row."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from dopd_vlm.errors import unknown
from dopd_vlm.types import Message

PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
ANSWER_TYPES = ("text", "choice", "number", "math", "box", "code")


@dataclass(frozen=True, kw_only=True)
class Question:
    """The checked question of a row."""

    text: str
    answer: str
    answer_type: str
    choices: dict[str, str] | None
    system: str | None
    history: tuple[Message, ...]


def read_question(row: Mapping[str, Any], num_images: int, videos: Sequence[str] = ()) -> Question:
    """The question from `question`, or from `messages` in TRL's vision form.

    Each `<video>` becomes its text in `videos`, whose images come after the row's own.

    Of `messages` the system turn becomes `system`, the last user turn the question, earlier turns
    the history; a reply after the last user turn is the answer where the row has none.

    Raises:
        ValueError: empty question, placeholders that do not match the images, an answer outside
            the choices, an unknown answer type, messages of another form.
    """
    system, history, text, reply = row.get("system"), (), row.get("question"), None
    if row.get("messages") is not None:
        if text is not None:
            raise ValueError("the row has both 'question' and 'messages': leave one of them out")
        turns_system, history, text, reply = _read_messages(row["messages"])
        system = turns_system if system is None else system
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the question must be text, got {text!r}")
    if not re.sub(f"{PLACEHOLDER}|{VIDEO_PLACEHOLDER}", "", text or "").strip():
        raise ValueError(f"the question is empty: {text!r}; give 'question' or 'messages'")
    assert text is not None
    if system is not None and not isinstance(system, str):
        raise ValueError(f"system must be a string or null, got {type(system).__name__}")
    text = _with_places(text, num_images, videos)
    choices = _read_choices(row.get("choices"))
    answer = _read_answer(row.get("answer") if row.get("answer") is not None else reply)
    return Question(
        text=text,
        answer=answer,
        answer_type=_answer_type(row.get("answer_type"), answer, choices),
        choices=choices,
        system=system or None,
        history=history,
    )


def _with_places(text: str, num_images: int, videos: Sequence[str]) -> str:
    """The question with a placeholder per image, or none at all; videos filled in."""
    for word, mark, count in (
        ("images", PLACEHOLDER, num_images),
        ("videos", VIDEO_PLACEHOLDER, len(videos)),
    ):
        if text.count(mark) not in (0, count):
            raise ValueError(
                f"the question has {text.count(mark)} {mark} but the row {count} {word}"
            )
    if not videos:
        return text
    if VIDEO_PLACEHOLDER not in text:
        text = VIDEO_PLACEHOLDER * len(videos) + text
    if num_images and PLACEHOLDER not in text:
        text = PLACEHOLDER * num_images + text
    if PLACEHOLDER in text[text.index(VIDEO_PLACEHOLDER) :]:
        raise ValueError("images must come before videos in the question")
    first, *rest = text.split(VIDEO_PLACEHOLDER)
    return first + "".join(v + piece for v, piece in zip(videos, rest, strict=True))


def _read_answer(raw: Any) -> str:
    """The answer as text, "" for None."""
    return "" if raw is None else plain_text("the answer", raw).strip()


def plain_text(field: str, value: Any) -> str:
    """Text as it is, a finite number as JSON writes it; ValueError for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (is_number and math.isfinite(value)):
        return str(value)
    raise ValueError(f"{field} must be text or a number, got {value!r}")


def parse_json(field: str, text: str) -> Any:
    """The value of a field that a table stored as JSON text."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{field} is text that is no JSON: {error}") from error


def _read_choices(raw: Any) -> dict[str, str] | None:
    """{letter: option text}; a list gets letters from A; a table's null entries are dropped."""
    if isinstance(raw, str):
        raw = parse_json("choices", raw) if raw.strip() else None
    if isinstance(raw, Sequence) and len(raw) <= len(ascii_uppercase):
        raw = dict(zip(ascii_uppercase, raw, strict=False))
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ValueError(f"choices must be {{letter: text}} or a list of at most 26, got {raw!r}")
    choices = {
        str(key): plain_text(f"option {key}", value)
        for key, value in raw.items()
        if value is not None
    }
    if choices and len(choices) < 2:
        raise ValueError(f"choices must be at least two, got {choices}")
    return choices or None


def _answer_type(raw: Any, answer: str, choices: Mapping[str, str] | None) -> str:
    kind = raw or ("choice" if choices else "text")
    if kind not in ANSWER_TYPES:
        raise unknown("answer_type", kind, ANSWER_TYPES)
    if kind == "choice" and choices is None:
        raise ValueError("answer_type 'choice' needs choices")
    if choices and answer:
        letters = [answer] if answer in choices else answer.replace(",", "").replace(" ", "")
        if any(letter not in choices for letter in letters):
            raise ValueError(f"the answer {answer!r} is not among the choices {', '.join(choices)}")
    return str(kind)


def _read_messages(
    messages: Any,
) -> tuple[str | None, tuple[Message, ...], str | None, str | None]:
    """(system, history, question, reply) of a conversation."""
    if isinstance(messages, str):
        messages = parse_json("messages", messages)
    if not isinstance(messages, Sequence):
        raise ValueError(f"messages must be a list of turns, got {type(messages).__name__}")
    turns = [_turn(index, message) for index, message in enumerate(messages)]
    users = [index for index, (role, _) in enumerate(turns) if role == "user"]
    if not users:
        raise ValueError("messages hold no user turn")
    last = users[-1]
    systems = [text for role, text in turns if role == "system"]
    history = [(role, text) for role, text in turns[:last] if role != "system"]
    if any(PLACEHOLDER in text for _, text in history):
        raise ValueError(
            "images in earlier turns are not supported: put them in the last user turn"
        )
    replies = [text for role, text in turns[last + 1 :] if role == "assistant"]
    return (
        "\n".join(systems) or None,
        tuple({"role": role, "content": text} for role, text in history),
        turns[last][1],
        replies[0] if replies else None,
    )


def _turn(index: int, message: Any) -> tuple[str, str]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("system", "user", "assistant"):
        raise ValueError(
            f"messages[{index}] must have a role system, user or assistant: {message!r}"
        )
    content = message.get("content")
    if isinstance(content, str):
        return role, content
    if not isinstance(content, Sequence):
        raise ValueError(f"messages[{index}].content must be text or a list of blocks")
    return role, "".join(_block(index, block) for block in content)


def _block(index: int, block: Any) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind in ("image", "video"):
        return PLACEHOLDER if kind == "image" else VIDEO_PLACEHOLDER
    if kind == "text" and isinstance(block.get("text"), str):
        return block["text"]
    raise ValueError(f"messages[{index}] has a block that is neither image nor text: {block!r}")
