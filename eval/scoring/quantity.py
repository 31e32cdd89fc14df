"""The value of a number as people and models write it, read strictly: no part of a text is skipped.

Read are signs, thousands, decimals, scientific notation, fractions, mixed numbers, roots, powers, multiples
of pi, sums and products of these, number words, scales (million), percent and units after a number.
Ranges, alternatives, pairs, ratios, inequalities and algebra are no number.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from .markup import CLOSE, OPEN, closing_brace, plain

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = {word: value for value, word in enumerate(SMALL)} | {
    word: 10 * value for value, word in enumerate(TENS, start=2)
}
SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
LEADING = re.compile(
    r"^(?:(?:is|are|be|about|approximately|approx\.?|around|roughly|nearly|exactly|only|just|indeed|a total of|"
    r"there (?:is|are)|the|equal to|equals|[~=:$\u20ac\u00a3\u00a5\u2248]|\\approx|rs\.?|usd|us)\s*)+",
    re.IGNORECASE,
)
PERCENT = re.compile(r"\s*(?:\\?%|percent\b|per cent\b|percentage points?\b)\s*", re.IGNORECASE)
DEGREES = re.compile(r"(?:\^\s*\{?\s*\\?circ\s*\}?|\\circ|\\degree|\u00b0)")
NO_UNIT = r"(?!(?:to|or|and|x|plus|minus|times|than|not|pi|sqrt|by)\b)"
UNIT_WORD = rf"{NO_UNIT}[A-Za-z\u00b5\u03a9'\"()-]+(?:\^?\{{?-?[23]\}}?(?!\d)|[\u00b2\u00b3])?"
UNIT = re.compile(
    # Behind a space any word; glued to the number a word, or a letter that is a unit and no variable.
    r"(?:(?<=[\d)}\u03c0 ])|(?<=pi))\s*(?:(?<=\s)|(?=[A-Za-z]{2}|[msghlLNVAKWJFCT](?![A-Za-z])))"
    rf"(?!\(){UNIT_WORD}(?:(?:\s+|\s*[/\u00b7]\s*){UNIT_WORD}){{0,6}}$"
)
RANGE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*$")
NO_NUMBER = re.compile(r"[<>:;|?!\u2013\u2014\u00b1\u2264\u2265]|\\pm|\\le|\\ge|\\infty|\.\.\.")
OPERATORS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
LARGEST_EXPONENT = 100
LONGEST = 120
"""Characters of a text that may be one number with its unit."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number; 35% has the value 35 and is a percentage."""

    value: float
    is_percent: bool = False


def read_quantity(text: str) -> Quantity | None:
    """The number that a text is, None where it is none or holds anything else."""
    if len(text) > LONGEST:
        return None
    text = re.sub(r"(?<=\d)(,?)\\[!,](?=\d{3})", r"\1", text.replace("{,}", ","))
    text = re.sub(r"(?<=[\d)}])\s*\*\s*(?=[\d(\\s])", r"\\times ", text.replace("\\$", "$"))
    text = LEADING.sub("", plain(text).strip(f" \t\n{OPEN}{CLOSE}\"'")).rstrip(" .,")
    if not text or NO_NUMBER.search(text):
        return None
    is_percent = PERCENT.search(text) is not None
    text = DEGREES.sub("", PERCENT.sub(" ", text, count=1)).strip()
    value = _value(text)
    return None if value is None else Quantity(value=value, is_percent=is_percent)


def _value(text: str) -> float | None:
    words = _word_value(text.casefold())
    if words is not None:
        return words
    scale = re.search(rf"(?<=[\d\s])\s*\b({'|'.join(SCALES)})s?\b", text, re.IGNORECASE)
    if scale:
        text = text[: scale.start()] + " " + text[scale.end() :]
    text = UNIT.sub("", text.strip()).strip()
    value = _calculate(text)
    factor = SCALES[scale[1].lower()] if scale else 1.0
    return None if value is None else value * factor


def _word_value(text: str) -> float | None:
    """twenty-one chairs is 21; None where the text does not begin with a number word."""
    total, current, is_read = 0.0, 0.0, False
    words = re.findall(r"[a-z]+|[^a-z\s-]+", text)
    for place, word in enumerate(words):
        if word in WORDS:
            current += WORDS[word]
        elif word == "hundred" and is_read:
            current *= 100
        elif word in SCALES and is_read:
            total, current = total + current * SCALES[word], 0.0
        elif not (
            word == "and" and is_read and place + 1 < len(words) and words[place + 1] in WORDS
        ):
            is_unit = all(re.fullmatch(r"[a-z]+", rest) for rest in words[place:])
            is_other = {"to", "or", "and", "not", *WORDS} & set(words[place:])
            return total + current if is_read and is_unit and not is_other else None
        is_read = True
    return total + current if is_read else None


def _calculate(text: str) -> float | None:
    """The value of an arithmetic expression in LaTeX or plain characters."""
    bounds = RANGE.match(text)
    if bounds and float(bounds[1]) < float(bounds[2]):
        return None
    try:
        value = _evaluate(ast.parse(_python(text).strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    is_real = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_real else None


def _python(text: str) -> str:
    """The expression in Python's notation."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(
        r"(?<![\d.])(\d{1,3})((?: \d{3})+)(?![\d/])", lambda m: m[0].replace(" ", ""), text
    )
    text = re.sub(r"(\d)\s*(?=\\[dtc]?frac)|(?<![\d/.])(\d+)\s+(?=\d+\s*/\s*\d)", r"\1\2+", text)
    text = _arguments(text)
    text = re.sub(r"\\(?:times|cdot|ast)|[\u00d7\u00b7\u22c5]", "*", text)
    text = re.sub(
        r"\\pi(?![a-zA-Z])|\u03c0|(?<![a-zA-Z])pi(?![a-zA-Z])", " (3.141592653589793) ", text
    )
    text = re.sub(r"\\div|\u00f7", "/", text).replace("\u221a", "sqrt").replace("^", "**")
    text = re.sub(r"sqrt\s*(\d+(?:\.\d+)?)", r" sqrt(\1)", text).replace("{", "(").replace("}", ")")
    text = re.sub(r"sqrt\s*\(", "sqrt(", re.sub(r"(?<![\w.])0+(?=\d)", "", text))
    return re.sub(r"(?<=[\d)])\s*(?=sqrt|\()|(?<=\))\s*(?=\d)", "*", text)


def _arguments(text: str) -> str:
    r"""`\frac{a}{b}`, `\frac12` and `\sqrt{a}` as calls and quotients."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    while (place := text.rfind("\\frac")) >= 0:
        top, rest = _argument(text[place + 5 :])
        bottom, rest = _argument(rest)
        text = f"{text[:place]}(({top})/({bottom})){rest}"
    text = re.sub(r"\\sqrt\s*\[\s*3\s*\]", r"\\cbrt", text)
    while match := re.search(r"\\(sqrt|cbrt)(?!.*\\(?:sqrt|cbrt))", text, re.DOTALL):
        inner, rest = _argument(text[match.end() :])
        power = "1/2" if match[1] == "sqrt" else "1/3"
        text = f"{text[: match.start()]}(({inner})**({power})){rest}"
    return text


def _argument(text: str) -> tuple[str, str]:
    """A LaTeX argument, in braces or one character, and what follows it."""
    text = text.lstrip()
    if text.startswith("{"):
        end = closing_brace(text, 1)
        return text[1:end], text[end + 1 :]
    return text[:1], text[1:]


def _evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Pow) and (abs(right) > LARGEST_EXPONENT or abs(left) > 1e12):
            raise ValueError("a power too large to be an answer")
        value = OPERATORS[type(node.op)](left, right)
        if isinstance(value, complex):
            raise ValueError("not real")
        return value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sqrt":
        return math.sqrt(_evaluate(node.args[0]))
    raise ValueError(f"{type(node).__name__} is no arithmetic")
