"""The annotation types that are text; `answer` is for the ablation only."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..coords import Frame
from .disclosure import ENUMERATION, disclosed


class Captions:
    """Captions of the images: a string or a list of strings, one line each."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The non-empty lines; ValueError for anything but strings."""
        return lines_of(raw)

    def describe(self, value: Sequence[str], frame: Frame) -> str:
        """The captions, one a line."""
        return "\n".join(value)


class Hints:
    """Steps or a summary that lead to the answer without holding it: a string or a list of strings.

    Serves `hints` (the paper's step-wise decomposition) and `summary` (its summarised form).
    """

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The non-empty steps; ValueError for anything but strings."""
        return lines_of(raw)

    def describe(self, value: Sequence[str], frame: Frame) -> str:
        """The steps, one a line."""
        return "\n".join(value)

    def check(self, value: Sequence[str], answer: str, choices: Mapping[str, str] | None) -> None:
        """Raises ValueError for the first step that discloses the answer."""
        for index, step in enumerate(value):
            place = disclosed(ENUMERATION.sub("", step), answer, choices)
            if place is not None:
                raise ValueError(
                    f"[{index}] {step!r} discloses the answer {answer!r} (as {place!r}); hints say "
                    "what to do, not what comes out: reword the step or drop it"
                )


class Solution:
    """A worked solution, steps with what comes out of them: a string or a list of strings.

    Unlike `hints` it may hold the answer ("step hints with execution" in the paper's ablation).
    """

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
        """The non-empty lines; ValueError for anything but strings."""
        return lines_of(raw)

    def describe(self, value: Sequence[str], frame: Frame) -> str:
        """The steps, one a line."""
        return "\n".join(value)


class SceneGraph:
    """Relations between things: `[[subject, relation, object]]`."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> tuple[tuple[str, str, str], ...]:
        """Checked triples of non-empty strings."""
        if raw is None:
            return ()
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            raise ValueError(f"must be a list of [subject, relation, object], got {raw!r}")
        return tuple(_triple(index, entry) for index, entry in enumerate(raw))

    def describe(self, value: Sequence[tuple[str, str, str]], frame: Frame) -> str:
        """A line `subject | relation | object` per triple."""
        return "\n".join(" | ".join(triple) for triple in value)


class Answer:
    """The final answer itself, taken from the row: for the ablation only."""

    def parse(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> str:
        """The answer as a string, empty if the row has none."""
        return "" if raw is None else str(raw).strip()

    def describe(self, value: str, frame: Frame) -> str:
        """The answer; warns."""
        if value:
            warnings.warn(
                "annotation type 'answer' shows the teacher the final answer: an ablation, which "
                "the paper found worse than step hints",
                stacklevel=2,
            )
        return value


def lines_of(raw: Any) -> tuple[str, ...]:
    """A string or a list of strings as a tuple of stripped, non-empty lines; None is empty."""
    if raw is None:
        return ()
    values = [raw] if isinstance(raw, str) else raw
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"must be a string or a list of strings, got {raw!r}")
    return tuple(value.strip() for value in values if value.strip())


def _triple(index: int, entry: Any) -> tuple[str, str, str]:
    is_list = isinstance(entry, Sequence) and not isinstance(entry, str)
    if (
        not is_list
        or len(entry) != 3
        or not all(isinstance(part, str) and part.strip() for part in entry)
    ):
        raise ValueError(f"[{index}] must be [subject, relation, object] in words, got {entry!r}")
    return entry[0].strip(), entry[1].strip(), entry[2].strip()
