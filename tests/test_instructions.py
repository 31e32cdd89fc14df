"""Instructions that are checked by a program: each followed, and each missed."""

import pytest

from dopd_vlm.eval.official.ifeval import CHECKS, instruction_score

FIVE = "One.\n\nTwo.\n\nThree."
CASES = [
    ("keywords:existence", {"keywords": ["sun", "mine"]}, "The Sun is mine.", "The sun."),
    ("keywords:forbidden_words", {"forbidden_words": ["mine"]}, "Mineral.", "It is MINE."),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "Two words",
        "It's three",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        "It's three",
        "Two words",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        'Dr. A saw 3.5 m. "Why?" Then he left',
        "Mr. B saw it. Yes.",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "***\nOne\n***\nTwo",
        "One\n***\n***\nTwo",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "two"},
        FIVE,
        "Two.\n\nOne.\n\nThree.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "one"},
        '"One" is.\n\nB\n\nC',
        "One.\n\nTwo.",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        "Text\nP. P.S more",
        "Text\nP.S. more",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Text\np.s. more",
        "Text\nPS more",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b", "* a\n**b**"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1 a\nSection 2 b",
        "Section 1 a\nSection b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": [1}'),
    ("detectable_format:title", {}, "<<sun song>>\nla", "<<>> <sun song>"),
    ("combination:two_responses", {}, "one ****** two", "one ****** one"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        '"So. That is all."',
        "That is all. Bye",
    ),
    ("startend:quotation", {}, ' "all" ', '"'),
    ("punctuation:no_comma", {}, "no comma", "a, comma"),
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_checks(name: str, arguments: dict, right: str, wrong: str) -> None:
    assert instruction_score(right, [name], [arguments]) == 1.0
    assert instruction_score(wrong, [name], [arguments]) == 0.0
    assert instruction_score(" ", [name], [arguments]) == 0.0


def test_the_score_is_a_mean_of_all_and_share() -> None:
    names = ["punctuation:no_comma", "startend:quotation"]
    assert instruction_score("plain", names, [None, {}]) == pytest.approx((0 + 0.5) / 2)


def test_every_check_has_a_case_and_unknown_ones_are_named() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)
    with pytest.raises(
        ValueError, match="unknown instruction 'keywords:existance'; near: keywords"
    ):
        instruction_score("x", ["keywords:existance"], [{}])
    with pytest.raises(ValueError, match="relation 'over' is neither"):
        arguments = {"num_words": 3, "relation": "over"}
        instruction_score("x", ["length_constraints:number_words"], [arguments])
