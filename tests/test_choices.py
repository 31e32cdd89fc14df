"""Which option a text chose: adversarial vectors, and what must hold for every text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd_vlm.eval.scoring.choices import extract_choice, extract_choices, options_in

FOUR = {"A": "red apple", "B": "blue car", "C": "green key", "D": "yellow dog"}
TEN = {letter: f"option number {i}" for i, letter in enumerate("ABCDEFGHIJ")}
WORDS = [
    "the", "picture", "shows", "two", "people", "near", "a", "wide", "river", "and", "some", "light",
    "in", "front", "of", "it",
]  # fmt: skip
RULES = {
    "unclosed_think", "bare", "declared", "ambiguous", "lead", "paren", "tail", "text", "unparsed",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: all except C", None),
        ("Answer: all except (C)", None),
        ("All but (B)", None),
        ("Everything but the blue car", None),
        ("not (A) but (B)", "B"),
        ("not the dog but the blue car", "B"),
        ("Option A is wrong.", None),
        ("Option A is wrong, so B", "B"),
        ("Option A can be ruled out.", None),
        ("Options A and B are wrong, so C", "C"),
        ("Choice A: no. Choice B: yes.", "B"),
        ("Answer: A and B", None),
        ("Answer: A, B", None),
        ("Answer: A/B", None),
        ("Answer: A & B", None),
        ("Answer B or C?", None),
        ("Options: A, B, C, D. Answer: C", "C"),
        ("A) is incorrect because it is red", None),
        ("A. red apple: no\nB. blue car: yes", None),
        ("(A) is wrong; (B) is right", "B"),
        ("(B) is correct, (A) is not", "B"),
        ("I rule out (A), (B) and (C).", None),
        ("It can't be (D)", None),
        ("neither (A) nor (B)", None),
        ("The answer is neither A nor B, but C", None),
        ("so the answer cannot be B", None),
        ("so either A or B", None),
        ("The correct option is B, not A.", "B"),
        ("The answer is not A. It is B", None),
        ("It is not the red apple.", None),
        ("This isn't a blue car", None),
        ("answer: a dog", None),
        ("A dog", None),
        ("A blue car", "B"),
        ("The answer is definitely B", "B"),
        ("The answer should be B.", "B"),
        ("Answer:\n\nC. green key", "C"),
        ("### Answer\n(C)", "C"),
        ("The answer is: **B. blue car**", "B"),
        ("I pick B", None),
        ("I do not see any dog so the answer is B", "B"),
        ("The picture does not show a dog and the answer is B", "B"),
        ("Without a doubt the answer is (B)", "B"),
        ("There is no dog, therefore the answer is B.", "B"),
        ("I cannot see an apple so I take (B)", "B"),
        ("I don't think the answer is B", None),
        ("We can rule out option B", None),
        ("It is blue rather than option A", None),
        ("Options A, B, and D fit. As one must be taken:\n\n(B) blue car", "B"),
        ("Options A and B fit, so I choose neither", None),
        ("The answers are A or B.", None),
        (
            "- **Option A**: no stem.\n- **Option B**: wheels.\n\nThe right choice is **(B) blue car**.",
            "B",
        ),
        ("- Option A: does not match.\n- Option B: matches.\n\nTherefore:\n(B) blue car", "B"),
        ("- Option A: does not match.\n- Option B: matches.", None),
        (
            "Since all options (A, B, C, and D) move, look closer.\nThe correct answer is:\n(B) blue car",
            "B",
        ),
        ("Select from the following choices.\n(A) red apple\n(B) blue car", None),
        ("The most likely answer is:\n\n(B) blue car\n\nThis is an educated guess.", "B"),
        ("ANSWER: B", "B"),
        ("'ANSWER: B' (without quotes)", "B"),
        ("Final answer: \\(\\boxed{\\mathrm{B}}\\)", "B"),
        ("$$\\boxed{B}$$", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer> (B) blue car </answer>", "B"),
        ("B: blue car", "B"),
        ("(A) red apple\n(B) blue car\n(C) green key\n(D) yellow dog", None),
        ("(A) red apple\n(B) blue car\n\nSo I take\n(B) blue car", "B"),
        ("- Option A has dots.\n- Option B has stripes", None),
        ("Option A: red apple\nOption B: blue car\nOption C: green", None),
        ("The answer is B's neighbour", None),
        ("\uff08B\uff09", None),
    ],
)
def test_adversarial(text: str, expected: str | None) -> None:
    assert extract_choice(text, FOUR)[0] == expected


@pytest.mark.parametrize(
    ("choices", "text", "expected"),
    [
        ({"A": "B", "B": "A"}, "B", "B"),
        ({"A": "A", "B": "B"}, "a picture of a road", None),
        ({"A": "left", "B": "left of it"}, "left of it", "B"),
        ({"A": "left", "B": "left of it"}, "it stands left of it", None),
        ({"A": "1", "B": "10"}, "10", "B"),
        ({"A": "same", "B": "same"}, "same", None),
        ({"A": "Vitamin B", "B": "Vitamin D"}, "Answer: Vitamin D", "B"),
        ({"A": "Plan B", "B": "none"}, "Plan B", "A"),
        ({"A": "(x+1)", "B": "x*y"}, "it is (x+1)", "A"),
    ],
)
def test_options_that_look_like_letters_or_contain_each_other(choices, text, expected) -> None:
    assert extract_choice(text, choices)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Options A and B are wrong.", None),
        ("(A) and (C) are incorrect, (B) and (D) are right", "BD"),
        ("Not (A) and (B)", None),
        ("The answer is A, B", "AB"),
    ],
)
def test_sets_are_not_guessed_either(text: str, expected: str | None) -> None:
    found = extract_choices(text, FOUR)[0]
    assert found == (None if expected is None else frozenset(expected))


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nOptions: A: red, B: blue, C: green", {"A": "red", "B": "blue", "C": "green"}),
        ("Colour?\n(A) red\n(B) blue\nAnswer directly.", {"A": "red", "B": "blue"}),
        ("Which way?\nA. left\nB. right", {"A": "left", "B": "right"}),
        ("Is it? choices: (A) yes (B) no", {"A": "yes", "B": "no"}),
        ("Who is (B) here?", {}),
        ("Which shapes? A, B, C, D", {}),
        ("How many?", {}),
    ],
)
def test_options_in_a_question(question: str, options: dict[str, str]) -> None:
    assert options_in(question) == options


phrases = st.sampled_from(
    [*WORDS, "(A)", "(B).", "Option C", "is wrong", "not", "B", "answer is D", "so", "\n", "A.", "red apple",
     "or", "and", "except", "I think", "Answer:", "a", "blue car,"]
)  # fmt: skip
texts = st.lists(phrases, max_size=14).map(" ".join)


@settings(deadline=None)
@given(texts, st.sampled_from([FOUR, TEN]))
def test_the_answer_is_an_option_or_none(text: str, choices: dict[str, str]) -> None:
    letter, rule = extract_choice(text, choices)
    assert rule in RULES
    assert (letter in choices) if letter is not None else rule in ("ambiguous", "unparsed")
    several, _ = extract_choices(text, choices)
    assert several is None or (several and several <= choices.keys())


@settings(deadline=None)
@given(
    texts,
    st.sampled_from(["**{}**", "  {}\n\n", "\n{}  ", "`{}`", "*{}*\n", "<think>(D)</think>{}"]),
)
def test_markup_and_space_around_the_text_do_not_matter(text: str, frame: str) -> None:
    assert extract_choice(frame.format(text), FOUR) == extract_choice(text, FOUR)
    assert extract_choices(frame.format(text), FOUR) == extract_choices(text, FOUR)


@settings(deadline=None)
@given(
    texts,
    st.sampled_from("ABCD"),
    st.sampled_from(["Answer: {}", "The answer is ({}).", r"\boxed{{{}}}"]),
)
def test_a_declaration_at_the_end_wins(text: str, letter: str, form: str) -> None:
    assert extract_choice(f"{text}.\n{form.format(letter)}", FOUR) == (letter, "declared")


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_words_without_options_are_no_answer(words: list[str]) -> None:
    if words != ["a"]:
        assert extract_choice(" ".join(words), FOUR)[0] is None


@settings(deadline=None)
@given(
    st.sampled_from("ABCD"),
    st.sampled_from(
        ["It is not ({}).", "The answer is not {}.", "Option {} is wrong", "Choice {} is incorrect.",
         "so it cannot be {}", "anything but ({})", "Everything except ({})", "I exclude ({})", "{} is not it",
         "Option {} isn't right", "The answer is not ({})", "({}) can be ruled out"]
    ),
    st.lists(st.sampled_from(WORDS), max_size=5),
)  # fmt: skip
def test_a_rejected_letter_is_never_chosen(letter: str, form: str, words: list[str]) -> None:
    text = " ".join([*words, form.format(letter)])
    assert extract_choice(text, FOUR)[0] is None
    assert extract_choices(text, FOUR)[0] is None


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_without_failing(text: str) -> None:
    letter, _ = extract_choice(text, FOUR)
    assert letter is None or re.search(
        rf"{letter}|{letter.lower()}|{FOUR[letter]}", text, re.IGNORECASE
    )
