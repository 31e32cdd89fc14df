"""Chat messages -> the prompt's text, by the processor's chat template; no turn is lost on the way."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dopd_vlm.types import Message

PROBE = "(a turn)"


def render(
    processor: Any,
    messages: Sequence[Message],
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> str:
    """The messages in the model's chat template, every special token included.

    Templates of some vision-language models (LLaVA-OneVision, SmolVLM) read lists of blocks alone and leave out
    a turn whose content is a string, without a word: they get each turn as blocks.

    Raises:
        ValueError: the template refuses the messages, or leaves out the text of a user or system turn.
    """
    is_visual = not isinstance(processor, PreTrainedTokenizerBase)
    turns = list(messages)
    if is_visual and not _reads_strings(processor):
        turns = [{**turn, "content": _blocks(turn)} for turn in turns]
    try:
        text = processor.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(template_kwargs or {}),
        )
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses the messages: {error}") from error
    assert isinstance(text, str)  # not tokens, not a batch
    _check_nothing_is_lost(turns, text)
    return text


def texts(turn: Message) -> list[str]:
    """What a turn says, one string a block of text."""
    return [block["text"] for block in _blocks(turn) if block["type"] == "text"]


def images_of(messages: Sequence[Message]) -> list[Any]:
    """The images of all turns, in order."""
    blocks = [block for turn in messages for block in _blocks(turn)]
    return [block["image"] for block in blocks if block["type"] == "image"]


def _blocks(turn: Message) -> list[dict[str, Any]]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _reads_strings(processor: Any) -> bool:
    try:
        turn = {"role": "user", "content": PROBE}
        return PROBE in processor.apply_chat_template([turn], tokenize=False)
    except (TemplateError, TypeError):  # it looks for blocks in the characters
        return False


def _check_nothing_is_lost(turns: Sequence[Message], text: str) -> None:
    # Not the assistant's: templates of thinking models cut thoughts out of earlier turns.
    for turn in turns:
        for said in texts(turn) if turn["role"] in ("system", "user") else ():
            if said.strip() not in text:
                raise ValueError(
                    f"the model's chat template leaves out the text of a {turn['role']} turn, {said[:80]!r}: "
                    "put it into the user's turn (prompts.placement=user), or give the model another chat_template"
                )
