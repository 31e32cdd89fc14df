"""chat.py: a chat template that refuses, drops or rewords a turn; tests/test_families.py has the families' own."""

from dataclasses import replace

import pytest
import tiny

from dopd_vlm.models.chat import render, texts
from dopd_vlm.models.encoder import encode_prompt
from dopd_vlm.prompts import build_prompts

USERS_ONLY = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endif %}"
    "{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def encoder_with(template: str):
    encoder = tiny.text_policy().encoder
    encoder.tokenizer.chat_template = template
    return encoder


def prompt_of(template: str, sample):
    return encode_prompt(encoder_with(template), build_prompts(sample).plain, uid=sample.uid)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NO_SYSTEM + USERS_ONLY, "refuses the messages: System role not supported"),
        (USERS_ONLY, "leaves out the text of a system turn, 'be brief'"),
    ],
)
def test_a_template_that_cannot_hold_the_system_turn_names_the_sample(template, reason):
    sample = replace(tiny.text_sample("xyz"), system="be brief")
    with pytest.raises(ValueError, match=rf"'xyz': the model's chat template {reason}"):
        prompt_of(template, sample)


def test_blanks_that_a_template_trims_and_thoughts_that_it_cuts_are_no_loss():
    turns = ({"role": "user", "content": "so far? \n"}, {"role": "assistant", "content": "hm: 4"})
    sample = replace(tiny.text_sample("xyz"), history=turns, question="\n what is xyz? ")
    assert prompt_of(USERS_ONLY, sample).text == (
        "<|im_start|>so far?<|im_end|><|im_start|>what is xyz?<|im_end|>"
    )


def test_options_reach_the_template():
    template = (
        "{{ mode }}{% for m in messages %}{{ m.content }}{% endfor %}{{ add_generation_prompt }}"
    )
    tokenizer = encoder_with(template).tokenizer
    messages = [{"role": "user", "content": "hi"}]
    assert render(tokenizer, messages, template_kwargs={"mode": "x"}) == "xhiTrue"
    assert render(tokenizer, messages, add_generation_prompt=False) == "hiFalse"


def test_texts_are_those_of_strings_and_blocks():
    blocks = [{"type": "image", "image": None}, {"type": "text", "text": "a"}]
    assert texts({"role": "user", "content": blocks}) == ["a"]
    assert texts({"role": "user", "content": "b"}) == ["b"]
