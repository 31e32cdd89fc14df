"""Numbers: the strict reader, which number a text answers with, and how it is compared."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_vlm.eval.scorers import scorer
from dopd_vlm.eval.scoring.numbers import declared_number
from dopd_vlm.eval.scoring.quantity import read_quantity
from dopd_vlm.types import Sample, View


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("+4", 4),
        ("1,200", 1200),
        ("1{,}200", 1200),
        ("1\\,200", 1200),
        ("32,\\!348", 32348),
        ("0.75", 0.75),
        (".5", 0.5),
        ("\\frac{3}{4}", 0.75),
        ("\\dfrac34", 0.75),
        ("\\frac12", 0.5),
        ("3/4", 0.75),
        ("2\\frac{1}{2}", 2.5),
        ("2 1/2", 2.5),
        ("3 \\times 10^{5}", 300000.0),
        ("3e5", 300000.0),
        ("2.5\xd710^-3", 0.0025),
        ("2\\sqrt{3}", 3.4641016151377544),
        ("\\sqrt5", 2.23606797749979),
        ("\u221a5", 2.23606797749979),
        ("50\u221a3", 86.60254037844386),
        ("224\\pi", 703.7167544041137),
        ("24\u03c0", 75.39822368615503),
        ("16 $\\pi$", 50.26548245743669),
        ("8 - 6\\pi", -10.849555921538759),
        ("22+8\\sqrt3", 35.856406460551014),
        ("1+\\frac23\\sqrt3+\\frac{\\sqrt5}3", 2.9000565308791812),
        ("35%", 35),
        ("35\\%", 35),
        ("1 million", 1000000.0),
        ("1.5 million dollars", 1500000.0),
        ("three chairs", 3),
        ("twenty-one", 21),
        ("one hundred and five", 105),
        ("three", 3),
        ("7 chairs", 7),
        ("12 cm", 12),
        ("12cm", 12),
        ("5 m/s^2", 5),
        ("12 cm^2", 12),
        ("12 \\text{ cm}^2", 12),
        ("60^\\circ", 60),
        ("60\xb0", 60),
        ("$18.90", 18.9),
        ("\\$36", 36),
        ("about 5", 5),
        ("approximately 3.14", 3.14),
        ("5 km/h", 5),
        ("10 square units", 10),
        ("3 or 4", None),
        ("3-5", None),
        ("10\u201315", None),
        ("10 to 15", None),
        ("(3, 5)", None),
        ("3, 5", None),
        ("2 hours and 30 minutes", None),
        ("2x", None),
        ("x", None),
        ("3:4", None),
        ("> 5", None),
        ("5 apples", 5),
        ("007", 7),
        ("0", 0),
        ("0.0", 0),
        ("\\frac{13}{2}", 6.5),
        ("1/0", None),
        ("\\sqrt{-1}", None),
        ("9^9^9", None),
        ("four to five", None),
        ("none", None),
        ("", None),
        ("not 5", None),
        ("\\frac{\\pi}{2}", 1.5707963267948966),
        ("3\\pi/2", 4.71238898038469),
        ("-\\frac{1}{2}", -0.5),
        ("\u22125", -5),
        ("5.", 5),
        ("2.0954", 2.0954),
        ("1 200", 1200),
        ("$1,200.50", 1200.5),
        ("5 meters long", 5),
        ("(5)", 5),
        ("5 years old", 5),
        ("4,5", None),
        ("2^{10}", 1024),
        ("10^{-2}", 0.01),
        ("\u20ac5", 5),
        ("12 in", 12),
        ("3 ft 2 in", None),
        ("50 percent", 50),
        ("50 million", 50000000.0),
        ("200 thousand", 200000.0),
        ("sqrt(2)", 1.4142135623730951),
        ("sqrt2", 1.4142135623730951),
        ("2*sqrt(3)", 3.4641016151377544),
        ("36 \\text{ square inches}", 36),
        ("4\\%", 4),
        ("\u03c0", 3.141592653589793),
        ("pi/2", 1.5707963267948966),
        ("2pi", 6.283185307179586),
        ("three and a half", None),
        ("-12.50 dollars", -12.5),
        ("12 \xd7 3 + 4", 40),
        ("4 meters", 4),
        ("6:00", None),
        ("6 pm", 6),
        ("20 * 5", 100),
    ],
)
def test_a_number_is_read_whole_or_not_at_all(text: str, value: float | None) -> None:
    quantity = read_quantity(text)
    assert (quantity and quantity.value) == (
        pytest.approx(value, rel=1e-12) if value is not None else None
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("red circle 1 blue square 1 red ring 2 answer 2", 2),
        ("answer 3 answer 4", 4),
        ("12 or 13", None),
        ("The answer is 3 + 4 = 7, not 9", 7),
        ("\\boxed{5} and 6", 5),
        ("work\n#### 1,024", 1024),
        ("The answer is unclear. 8", 8),
        ("nothing", None),
        ("\\boxed{\\frac{3}{4}}", 0.75),
        ("\\boxed{2\\frac{1}{2}}", 2.5),
        ("\\boxed{3 \\times 10^{5}}", 300000.0),
        ("\\boxed{1{,}200}", 1200),
        ("The answer is 20 = 4 \xd7 5.", 20),
        ("The answer to question 3 is 12.", 12),
        ("So the answer, rounded to 2 decimal places, is 3.14.", 3.14),
        ("Answer: In 2019 the share was 35%.", 35),
        ("There are 3 or 4 chairs", None),
        ("between 10 and 15 meters", None),
        ("(3, 5)", None),
        ("2 hours and 30 minutes", None),
        ("1 million", 1000000.0),
        ("three chairs", 3),
        ("I cannot tell since only frames 1 to 5 show the room.", None),
        ("(O + D)/2", None),
        ("<image2>", None),
        ("There are three chairs in the room.", 3),
        ("She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.\n#### 18", 18),
        ("Therefore, the total is 18 dollars.", 18),
        ("So she has 18 eggs left.", 18),
        ("Janet makes $18 every day.", 18),
        ("The bill is $18.50 in total.", 18.5),
        ("Total = 5 + 3 = 8 apples", 8),
        ("**Answer: 42**", 42),
        ('{"answer": "18"}', 18),
        ('{"reasoning": "x 3", "answer": 18}', 18),
        ('```json\n{"answer": "$1,200"}\n```', 1200),
        ("<answer>7</answer>", 7),
        ("<|begin_of_box|>12<|end_of_box|>", 12),
        ("x = 5", 5),
        ("The final answer is $\\boxed{12}$ cm.", 12),
        ("Answer: 12 cm", 12),
        ("Answer: about 12 cm (rounded)", 12),
        ("The answer is approximately 3.5 meters.", 3.5),
        ("\u7b54\u6848\u662f12", 12),
        ("The height of the triangle is 12 cm, since 3*4 = 12.", 12),
        ("\\boxed{x = 3}", 3),
        ("\\boxed{12 \\text{ cm}}", 12),
        ("\\boxed{400\\sqrt{5}}", 894.4271909999159),
        ("\\boxed{A}", None),
        ("\\boxed{8-6\\pi}", -10.849555921538759),
        ("5 chairs", 5),
        ("5", 5),
        ("about 5 meters", 5),
        ("The room is about 12.5 meters long.", 12.5),
        ("I count 4 tables.", 4),
        ("The answer is 5 or 6.", None),
        ("The answer is between 5 and 6.", None),
        ("\\boxed{5 \\text{ or } 6}", None),
        ("Answer: 1/2", 0.5),
        ("#### -3", -3),
        ("The two tables are 2.5 m apart.", 2.5),
        ("The answer is 24/7.", 3.4285714285714284),
        ("To find the mean, add 2, 3 and 4 and divide by 3. The mean is 3.", 3),
        ("The answer is not 5", None),
        ("1. Count the cars.\n2. There are 6.\n\nSo the answer is 6.", 6),
        ("answer: 7 chairs in room 3", 7),
        ("The probability is 35%.", 35),
    ],
)
def test_the_number_that_a_text_answers_with(text: str, value: float | None) -> None:
    number, _ = declared_number(text)
    quantity = None if number is None else read_quantity(number)
    assert (quantity and quantity.value) == (
        pytest.approx(value, rel=1e-12) if value is not None else None
    )


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{}", "{:,}", "${}$", "\\boxed{{{}}}", "{} cm", "{}."]),
)
def test_every_integer_is_read_in_every_form(value: int, form: str) -> None:
    assert read_quantity(form.format(value)).value == value  # type: ignore[union-attr]


@given(st.integers(-99, 99), st.integers(1, 99))
def test_fractions_equal_their_quotients(top: int, bottom: int) -> None:
    for form in ("\\frac{{{}}}{{{}}}", "{}/{}", "\\dfrac{{{}}}{{{}}}"):
        assert read_quantity(form.format(top, bottom)).value == pytest.approx(top / bottom)  # type: ignore[union-attr]


@given(st.text(max_size=80))
def test_any_text_is_read_without_failing(text: str) -> None:
    number, rule = declared_number(text)
    assert rule
    assert number is None or math.isfinite(read_quantity(number).value)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"\boxed{\frac12}", "1"),
        (r"\boxed{400\sqrt{5}}", "400"),
        (r"\boxed{8 - 6\pi}", "8"),
        (r"\boxed{22+8\sqrt3}", "22"),
        (r"\boxed{2\frac{1}{2}}", "2"),
        ("The answer is 20 = 4 * 5.", "4"),
        ("So the answer, rounded to 2 decimal places, is 3.14.", "2"),
        ("Answer: In 2019 the share was 35%.", "2019"),
        ("There are 3 or 4 chairs", "4"),
        ("between 10 and 15 meters", "15"),
        ("1 million", "1"),
        ("I'm sorry, I cannot tell the room's size, since only frames 1 to 5 show the room.", "5"),
    ],
)
def test_a_part_of_an_answer_is_not_the_answer(text: str, gold: str) -> None:
    sample = Sample(
        uid="q", question="?", answer=gold, plain=View(), privileged=View(), answer_type="number"
    )
    assert scorer("number")(text, sample).correct == 0.0
