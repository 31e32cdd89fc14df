"""An answer as plain text: LaTeX wrappers, Markdown and full-width forms gone, declared values marked."""

import re

OPEN, CLOSE = "\u27e6", "\u27e7"
"""Around what a box, a tag or a JSON field declares."""
FULL_WIDTH = str.maketrans(
    {
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(0x5E)},
        "\u3002": ".", "\u3001": ",", "\u3010": "[", "\u3011": "]", "\u2212": "-",
        "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u00a0": " ",
    }
)  # fmt: skip
DECLARING = (
    re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE),
    re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL),
    re.compile(
        r"[\"'](?:final|correct|predicted)?[_ ]?(?:answer|choice|option)(?:_letter)?[\"']\s*:\s*"
        r"[\"']((?:[^\"'\\]|\\.|(?<=\w)'(?=\w))*)[\"']",
        re.IGNORECASE,
    ),
    re.compile(
        r"[\"'](?:final|correct|predicted)?[_ ]?answer[\"']\s*:\s*(\[[^\]{}]*\]|[^\s\"',}\]][^,}\n]*)",
        re.IGNORECASE,
    ),
)
WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|sf|it|tt|bb|cal)|operatorname|mbox|fbox|bm|bf|rm)"
    r"\s*\{([^{}]*)\}"
)
SPECIAL = re.compile(r"</?s>|<\|(?:im_end|endoftext|eot_id|end)\|>")
SPACING = re.compile(r"\\(?:[,;:! ]|q?quad\b|displaystyle\b|left(?![a-z])|right(?![a-z]))|~")
MARKS = re.compile(
    r"\\[()\[\]]|[*`$]|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9{])|^#{1,3}(?= )", re.MULTILINE
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def plain(text: str) -> str:
    """The text without markup; every declared value is put between OPEN and CLOSE."""
    text = mark_declared(SPECIAL.sub("", text.translate(FULL_WIDTH)))
    text = MARKS.sub("", SPACING.sub(" ", unwrap(text)))
    return text.strip()


def mark_declared(text: str) -> str:
    """Boxes, answer tags and JSON answers as OPEN value CLOSE."""
    for pattern in DECLARING:
        text = pattern.sub(lambda match: f" {OPEN}{match[1].strip()}{CLOSE} ", text)
    pieces, place = [], 0
    while match := BOX.search(text, place):
        end = closing_brace(text, match.end())
        inner = text[match.end() : end]
        inner = inner if not BOX.search(inner) else mark_declared(inner).strip(f" {OPEN}{CLOSE}")
        pieces += [text[place : match.start()], f" {OPEN}{inner.strip()}{CLOSE} "]
        place = min(end + 1, len(text))
    return "".join([*pieces, text[place:]])


def closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes one opened before `start`, or the text's length."""
    depth = 1
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return len(text)


def unwrap(text: str) -> str:
    r"""`\text{X}`, `\mathbf{X}` and the like as X, nested ones too."""
    while (inner := WRAPPER.sub(r"\1", text)) != text:
        text = inner
    return text


def declared_values(text: str) -> list[str]:
    """The values between OPEN and CLOSE of a plain text, in order."""
    return re.findall(rf"{OPEN}([^{CLOSE}]*){CLOSE}", text)
