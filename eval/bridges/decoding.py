"""What the bridges to other harnesses share: their generation arguments, batches and stop texts."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dopd_vlm.types import Sampling

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = ("until", "do_sample", "temperature", "top_p", "top_k", "num_beams", *LENGTHS)
DEFAULT_LENGTH = 256
"""Tokens of a completion where the task names no number, as in lm-eval."""


def decoding(arguments: Mapping[str, Any]) -> Sampling:
    """Our settings for a task's generation arguments.

    Without `do_sample` a temperature above 0 samples; with `do_sample: false` it does not.

    Raises:
        ValueError: an argument that our decoding does not have, such as more than one beam.
    """
    unknown = sorted(arguments.keys() - set(KNOWN))
    if unknown or (arguments.get("num_beams") or 1) != 1:
        raise ValueError(
            f"generation arguments {dict(arguments)}: only {', '.join(KNOWN)} are known, "
            "and num_beams must be 1"
        )
    until = arguments.get("until") or []
    temperature = float(arguments.get("temperature") or 0.0)
    is_sampled = arguments.get("do_sample")
    if is_sampled is None:
        is_sampled = temperature > 0
    lengths = [int(arguments[name]) for name in LENGTHS if arguments.get(name) is not None]
    return Sampling(
        max_completion_length=lengths[0] if lengths else DEFAULT_LENGTH,
        temperature=(temperature or 1.0) if is_sampled else 0.0,
        top_p=float(arguments.get("top_p") or 1.0) if is_sampled else 1.0,
        top_k=int(arguments.get("top_k") or 0) if is_sampled else 0,
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
    )


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """ValueError for a model argument that the bridges do not know."""
    if ignored := sorted(arguments.keys() - {"max_batch_size"}):
        raise ValueError(
            f"unknown model arguments {ignored}; known: pretrained, batch_size, device"
        )


def by_settings(settings: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[int]]]:
    """Equal settings -> places of the requests that have them, in the order of their first."""
    groups: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    for place, one in enumerate(settings):
        groups.setdefault(json.dumps(one, sort_keys=True, default=str), (one, []))[1].append(place)
    return list(groups.values())


def batches(
    places: Sequence[int], size: int, length: Callable[[int], int]
) -> Iterator[Sequence[int]]:
    """Places in batches of like length, the longest first."""
    order = sorted(places, key=lambda i: (-length(i), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]
