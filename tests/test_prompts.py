"""prompts.py: the template is filled once, and images stand where the row's question puts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dopd_vlm.prompts import PromptTemplate, build_prompts, question_text
from dopd_vlm.types import Sample, View

IMAGES = tuple(Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
FIELDS = ("{question}", "{context}", "{options}", "<image>", "a", "\n")
row_text = st.lists(st.sampled_from(FIELDS), min_size=1, max_size=5).map(" ".join)


def sample(question="what ?", context="", choices=None, images=(), teacher_images=None):
    marked = images if teacher_images is None else teacher_images
    return Sample(
        uid="s",
        question=question,
        answer="A",
        plain=View(images=images),
        privileged=View(images=marked, context=context),
        choices=choices,
    )


def text_of(content) -> str:
    if isinstance(content, str):
        return content
    return "".join("[I]" if b["type"] == "image" else b["text"] for b in content)


def last_turns(given, template=None) -> tuple[str, str]:
    prompts = build_prompts(given, template)
    return text_of(prompts.plain[-1]["content"]), text_of(prompts.privileged[-1]["content"])


def test_a_caption_with_a_field_s_name_is_not_filled() -> None:
    _, privileged = last_turns(sample(context="the sign says {question} and {options}"))
    assert privileged == "what ?\n\nReference:\nthe sign says {question} and {options}"


def test_an_option_with_a_field_s_name_is_not_filled() -> None:
    plain, _ = last_turns(sample(choices={"A": "{question}", "B": "{options}"}))
    assert plain.startswith("what ?\nA. {question}\nB. {options}\n")


def test_a_question_with_a_field_s_name_is_not_filled() -> None:
    _, privileged = last_turns(sample("does {context} help ?", context="secret"))
    assert privileged == "does {context} help ?\n\nReference:\nsecret"


@pytest.mark.parametrize("where", ["context", "choices"])
def test_image_marks_outside_the_question_move_no_image(where) -> None:
    change = {"context": {"context": "press <image>"}, "choices": {"choices": {"A": "<image>"}}}
    plain, privileged = last_turns(sample("left <image> right", images=IMAGES[:1], **change[where]))
    assert plain.startswith("left [I] right") and privileged.startswith("left [I] right")
    assert plain.count("[I]") == privileged.count("[I]") == 1
    assert "<image>" in privileged


def test_images_without_a_place_go_first_and_extra_ones_of_the_teacher_too() -> None:
    plain, privileged = last_turns(
        sample("a <image> b", images=IMAGES[:1], teacher_images=IMAGES, context="c")
    )
    assert plain == "a [I] b"
    assert privileged == "[I]a [I] b\n\nReference:\nc"
    assert last_turns(sample("a", images=IMAGES))[0] == "[I][I]a"


def test_places_vanish_where_the_teacher_has_no_image() -> None:
    prompts = build_prompts(sample("a <image> b", images=IMAGES[:1], teacher_images=()))
    assert prompts.privileged[-1]["content"] == "a  b"


def test_context_in_the_system_turn_is_not_filled_either() -> None:
    template = PromptTemplate(placement="system")
    prompts = build_prompts(sample(context="{question} {context}"), template)
    assert prompts.privileged[0] == {
        "role": "system", "content": "Reference:\n{question} {context}",
    }  # fmt: skip
    assert prompts.privileged[1:] == prompts.plain


@given(row_text, row_text, st.none() | st.tuples(row_text, row_text), st.sampled_from([0, 1, 2]))
def test_every_word_of_a_row_arrives_once(question, context, options, count) -> None:
    question = question.replace("<image>", "b") + " <image>" * count
    choices = None if options is None else dict(zip("AB", options, strict=True))
    one = sample(question, context, choices, IMAGES[:count])
    options_text = "" if choices is None else "\n".join(f"{k}. {v}" for k, v in choices.items())
    wording = "" if choices is None else (
        f"\n{options_text}\nAnswer with the option's letter from the given choices."
    )  # fmt: skip
    shown = question.replace("<image>", "[I]") + wording
    plain, privileged = last_turns(one)
    assert plain == shown
    assert privileged == f"{shown}\n\nReference:\n{context}"
    assert question_text(one, PromptTemplate()) == question + wording
