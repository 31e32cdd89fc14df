"""IFEval's verifiable instructions (arXiv 2311.07911) as far as LiveBench asks them, strictly read.

The wording of each check follows the instruction that questions show. Sentences are counted by
their end marks, where the published program asks a trained splitter.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dopd_vlm.errors import unknown

Check = Callable[[str, Mapping[str, Any]], bool]
"""(answer, the instruction's arguments) -> whether it is followed."""
SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|[A-Z])\.$")


def instruction_score(text: str, names: Sequence[str], arguments: Sequence[Any]) -> float:
    """LiveBench's mean of two numbers: all instructions followed, and the share of them.

    Raises:
        ValueError: an instruction that has no check here, naming the near ones.
    """
    followed = [
        bool(text.strip()) and _check(name)(text, {**(values or {})})
        for name, values in zip(names, arguments, strict=True)
    ]
    return (all(followed) + sum(followed) / len(followed)) / 2


def _check(name: str) -> Check:
    if name not in CHECKS:
        raise unknown("instruction", name, CHECKS)
    return CHECKS[name]


def _compares(count: int, values: Mapping[str, Any], key: str) -> bool:
    relation, threshold = values["relation"], values[key]
    if relation not in ("less than", "at least"):
        raise ValueError(f"relation {relation!r} is neither 'less than' nor 'at least'")
    return count < threshold if relation == "less than" else count >= threshold


def _sentences(text: str) -> int:
    """End marks before a space, those of abbreviations aside, and an unfinished rest."""
    ends = [
        match.end()
        for match in SENTENCE_END.finditer(text)
        if not ABBREVIATION.search(text[: match.end()])
    ]
    return len(ends) + bool(re.search(r"\w", text[ends[-1] if ends else 0 :]))


def _divided(text: str, values: Mapping[str, Any]) -> bool:
    """Paragraphs between *** dividers; only the first and the last may be empty."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == values["num_paragraphs"]


def _first_word(text: str, values: Mapping[str, Any]) -> bool:
    """The number of paragraphs between empty lines, and how one of them starts."""
    parts, place = text.split("\n\n"), values["nth_paragraph"]
    count = sum(bool(part.strip()) for part in parts)
    if place > count or count != values["num_paragraphs"] or not parts[place - 1].strip():
        return False
    word = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == values["first_word"].lower()


def _postscript(text: str, values: Mapping[str, Any]) -> bool:
    letters = re.sub(r"\W", "", values["postscript_marker"]).lower()
    spaced = r"\.\s?".join(letters)
    ending = r"\." if values["postscript_marker"] == "P.S." else ""
    return re.search(spaced + ending, text.lower()) is not None


def _two_responses(text: str, values: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _is_json(text: str, values: Mapping[str, Any]) -> bool:
    try:
        json.loads(re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE))
    except (ValueError, RecursionError):
        return False
    return True


def _quoted(text: str, values: Mapping[str, Any]) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: dict[str, Check] = {
    "keywords:existence": lambda text, values: all(
        re.search(word, text, re.IGNORECASE) for word in values["keywords"]
    ),
    "keywords:forbidden_words": lambda text, values: (
        not any(
            re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in values["forbidden_words"]
        )
    ),
    "length_constraints:number_words": lambda text, values: _compares(
        len(re.findall(r"\w+", text)), values, "num_words"
    ),
    "length_constraints:number_sentences": lambda text, values: _compares(
        _sentences(text), values, "num_sentences"
    ),
    "length_constraints:number_paragraphs": _divided,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda text, values: (
        len(re.findall(r"^\s*(?:\*[^*\n].*|-.*)$", text, re.MULTILINE)) == values["num_bullets"]
    ),
    "detectable_format:multiple_sections": lambda text, values: (
        len(re.findall(rf"{values['section_spliter']}\s?\d+", text)) >= values["num_sections"]
    ),
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda text, values: any(
        title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text)
    ),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, values: (
        text.strip().lower().startswith(values["prompt_to_repeat"].strip().lower())
    ),
    "startend:end_checker": lambda text, values: (
        text.strip().strip('"').lower().endswith(values["end_phrase"].strip().lower())
    ),
    "startend:quotation": _quoted,
    "punctuation:no_comma": lambda text, values: "," not in text,
}
"""Instruction -> check."""
