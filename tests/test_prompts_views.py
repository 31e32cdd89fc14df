"""Any number of named views: each has its prompts, an unknown one is refused by name."""

from dataclasses import replace

import pytest
import tiny

from dopd_vlm.prompts import build_prompts
from dopd_vlm.types import PromptPair, Prompts, View


def test_named_views_have_prompts_of_their_own():
    sample = tiny.text_sample("a", context="full hint")
    wider = replace(sample, views={"partial": View(context="half")})
    prompts = build_prompts(wider)
    assert prompts.plain == build_prompts(sample).plain and prompts.view("plain") == prompts.plain
    assert "half" in str(prompts.view("partial")) and "full" not in str(prompts.view("partial"))
    assert "half" not in str(prompts.privileged)
    with pytest.raises(ValueError, match=r"unknown view 'partal'; near: partial"):
        prompts.view("partal")
    with pytest.raises(ValueError, match="unknown view 'wrong'"):
        wider.view("wrong")
    assert PromptPair is Prompts
