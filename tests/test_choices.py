"""Which option a text chose: adversarial vectors, and what must hold for every text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd_vlm.eval.scoring.choices import extract_choice, extract_choices
from dopd_vlm.eval.scoring.options import options_in

FOUR = {"A": "red apple", "B": "blue car", "C": "green key", "D": "yellow dog"}
TEN = {letter: f"option number {i}" for i, letter in enumerate("ABCDEFGHIJ")}
WORDS = [
    "the", "picture", "shows", "two", "people", "near", "a", "wide", "river", "and", "some", "light",
    "in", "front", "of", "it",
]  # fmt: skip
RULES = {
    "unclosed_think", "bare", "declared", "refused", "ambiguous", "last_line", "lead", "tail", "paren",
    "list", "text", "unparsed",
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
        ("The answer is neither A nor B, but C", "C"),
        ("so the answer cannot be B", None),
        ("so either A or B", None),
        ("The correct option is B, not A.", "B"),
        ("The answer is not A. It is B", "B"),
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
        ("I pick B", "B"),
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
        ("\uff08B\uff09", "B"),
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


LETTERS = dict.fromkeys("ABCDEFGH", "")
YES_NO = {"A": "Yes", "B": "No"}
SIDES = {"A": "left", "B": "right", "C": "back"}
COLOURS = {"A": "red", "B": "blue", "C": "green", "D": "gray"}
ANGLES = {"A": "25\u00b0", "B": "40\u00b0", "C": "50\u00b0"}


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        (
            "**Answer: B**\n\nExplanation: Option A describes the bus, and option C describes the tree behind it.",
            LETTERS,
            "B",
        ),
        (
            "The correct answer is B, since option D would require the base to be longer.",
            LETTERS,
            "B",
        ),
        (
            "B\n\nThe car is blue. Choice A shows the traffic light; choice C is the colour of the grass.",
            LETTERS,
            "B",
        ),
        (
            "The correct answer is **H**. Note that option F would be the cost before the discount.",
            LETTERS,
            "H",
        ),
        ("I chose option B because option C includes the tax twice.", LETTERS, "B"),
        (
            "Answer: B\n\n(Option A would be right if the question asked about the bus.)",
            LETTERS,
            "B",
        ),
        (
            "Let's examine each option. Option A: 8 cm would give 3, which is too small. Option B: 12 cm would give",
            LETTERS,
            None,
        ),
        ("(A) is too small and (C) is too large.", LETTERS, None),
        (
            "Let's go through the choices (A), (B), (C) and (D) and compare each ... First,",
            LETTERS,
            None,
        ),
        ("That's right, the chair is behind you.", SIDES, None),
        ("The car is parked near the tree.\n\nB", LETTERS, "B"),
        ("B is correct.", LETTERS, "B"),
        ("B is the correct answer.", LETTERS, "B"),
        ("It's B.", LETTERS, "B"),
        ("Ans: C", LETTERS, "C"),
        ("Answer - C", LETTERS, "C"),
        ('The answer is "B".', LETTERS, "B"),
        ('{"answer": "B"}', LETTERS, "B"),
        ('```json\n{"reasoning": "x", "answer": "B"}\n```', LETTERS, "B"),
        ("Answer: [C]", LETTERS, "C"),
        (r"$\mathbf{C}$", LETTERS, "C"),
        (r"The answer is \text{D}.", LETTERS, "D"),
        ("<|begin_of_box|>C<|end_of_box|>", LETTERS, "C"),
        ("The figure that completes the pattern is E.", LETTERS, "E"),
        ("At first I thought the answer was A, but after checking it is C.", LETTERS, "C"),
        ("\u6545\u9009D\u3002", LETTERS, "D"),
        ("\u56e0\u6b64\uff0c\u9009B\u3002", LETTERS, "B"),
        ("\u7b54\u6848\u9009C\u3002", LETTERS, "C"),
        ("\u6240\u4ee5\u7b54\u6848\u662f\uff08C\uff09", LETTERS, "C"),
        ("\u3010\u7b54\u6848\u3011D", LETTERS, "D"),
        ("\u6b63\u786e\u7684\u662fB\u9879", LETTERS, "B"),
        ("B\u3002\u56e0\u4e3a\u4e8c\u6b21\u51fd\u6570\u5f00\u53e3\u5411\u4e0a", LETTERS, "B"),
        (r"Answer: \( \text{F} \)", LETTERS, "F"),
        (r"Answer: \( C \)", LETTERS, "C"),
        (r"**Answer: \( C \)**", LETTERS, "C"),
        ("sin(C) = 0.8 and so AC is 10.", LETTERS, None),
        ("The correct option letter is C.", LETTERS, "C"),
        ("The correct option letter is C: 40\u00b0.", ANGLES, "C"),
        ("The correct option letter is C. Because angle A would be 25\u00b0", ANGLES, "C"),
        (
            'The correct answer is "C." The supply of salmon will stay the same if they decrease',
            {"A": "decrease", "B": "increase", "C": "stay the same"},
            "C",
        ),
        ("Therefore, the answer is not among the given choices.", COLOURS, None),
        ("The answer is: Cannot be determined.", YES_NO, None),
        (r"\boxed{\text{None of the above choices.}}", {"A": "2", "B": "3"}, None),
        (r"\boxed{-2\pi}", {"A": r"\frac12", "B": "2"}, None),
        (r"\boxed{2.5}", {"A": "5", "B": "2"}, None),
        (
            "Based on the image, the correct choice to replace the question mark would be B.",
            LETTERS,
            "B",
        ),
        (
            "The correct answer is **(C) 58**. ... The other options are incorrect. Option (D), 67, is the height",
            LETTERS,
            "C",
        ),
        (
            "The diagram that replaces the question mark is B. The other options, A, C and D, do not match",
            LETTERS,
            "B",
        ),
        ("The shape is blue. Therefore, the correct option is D.", LETTERS, "D"),
        ("I would go with C.", LETTERS, "C"),
        ("My choice is B", LETTERS, "B"),
        ("Option C is correct because it is green", LETTERS, "C"),
        ("A is incorrect. B is incorrect. C is correct.", LETTERS, "C"),
        ("Angle C is a right angle, so AB is the hypotenuse.", LETTERS, None),
        ("C: green", COLOURS, "C"),
        ("Looks like option C fits best.", LETTERS, None),
        ("Let me think. A looks wrong. B looks wrong too.", LETTERS, None),
        ("\u9009\u9879A\u4e0d\u6b63\u786e\uff0c\u9009\u9879B\u6b63\u786e\u3002", LETTERS, "B"),
        ("A\u4e0d\u6b63\u786e", LETTERS, None),
        ("\u4e0d\u9009A", LETTERS, None),
        (r"$\boxed{\textbf{(B)}\ 12}$", LETTERS, "B"),
        (r"\boxed{B. 12}", LETTERS, "B"),
        (r"\boxed{B) 12 cm}", LETTERS, "B"),
        (r"\boxed{\text{Option B}}", LETTERS, "B"),
        ("The answer is B or C.", LETTERS, None),
        ("I cannot see the image.", LETTERS, None),
        ("I'm sorry, I can't help with that.", dict.fromkeys("ABCDEFGHIJ", ""), None),
        ("A blue car is parked", LETTERS, None),
        ("Final Answer: The final answer is $\\boxed{D}$. I hope it is correct.", LETTERS, "D"),
        ("So the answer is (D) 12, not (C) 10.", LETTERS, "D"),
        ("Since A is 3 and B is 4, the answer is C", LETTERS, "C"),
        ("Step 1: A + B = C. Step 2: C is 5.", LETTERS, None),
        ("**Final Answer:**\n\n**C**", LETTERS, "C"),
        ("The answer is option (c).", LETTERS, "C"),
        ("answer is c", LETTERS, "C"),
        ("Option (B)", LETTERS, "B"),
        ("Choice: D", LETTERS, "D"),
        ("<answer>\nB\n</answer>", LETTERS, "B"),
        ("Answer:B", LETTERS, "B"),
        ("The right option is: D", LETTERS, "D"),
        ("Correct answer: A", LETTERS, "A"),
        ("Solution: C", LETTERS, "C"),
        ("Thus the best match is option E", LETTERS, "E"),
        ("which matches choice (D).", LETTERS, "D"),
        ("This corresponds to option B.", LETTERS, "B"),
        ("Hence, (C).", LETTERS, "C"),
        ("(C) green", COLOURS, "C"),
        ("The correct answer is not B but C.", LETTERS, "C"),
        ("We can eliminate A, B and D, leaving C.", LETTERS, "C"),
        ("Only C remains.", LETTERS, None),
        ("C) green because it is leafy", COLOURS, "C"),
    ],
)
def test_an_answer_cue_beats_mentions(
    text: str, choices: dict[str, str], expected: str | None
) -> None:
    assert extract_choice(text, choices)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Both A and C are rotated versions of the object.", "AC"),
        ("The sequence of the boxes is A, B, C, D, E.", "ABCDE"),
        ("The correct answers are A and C.", "AC"),
        ("A, B, C, D", "ABCD"),
        ("Answer: (A) and (D)", "AD"),
        (r"\boxed{A, C}", "AC"),
        ("Options B and D are correct.", "BD"),
        (
            "Based on the image, proposals A and B complete the diagrams at the bottom of the page.",
            "AB",
        ),
        ("The answer is A or C", None),
        ("\u7b54\u6848\uff1aA\u3001C", "AC"),
        ("\u6545\u9009ABD", "ABD"),
        ("A and B", "AB"),
        ('{"answer": ["A","C"]}', "AC"),
        ("The figures that match are B and E.", "BE"),
        ("AC", "AC"),
        ("The answer is ACD.", "ACD"),
        ("All of A, B and C are correct.", "ABC"),
    ],
)
def test_sets_in_words(text: str, expected: str | None) -> None:
    letters = extract_choices(text, LETTERS)[0]
    assert letters == (None if expected is None else frozenset(expected))


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
    assert (
        (letter in choices) if letter is not None else rule in ("ambiguous", "refused", "unparsed")
    )
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
    assert extract_choice(f"so: {text}.\n{form.format(letter)}", FOUR) == (letter, "declared")


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


def test_a_list_of_bare_letters_keeps_its_last_option() -> None:
    assert options_in("Select from A, B, C, and D. (A) (B) (C) (D)") == dict.fromkeys("ABCD", "")
