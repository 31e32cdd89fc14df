"""Where a completion ends because of a stop text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dopd_vlm.models.policy import Policy

CHECK_EVERY = 8
"""Tokens between looks at whether a sequence holds a stop text: each costs a decoded text."""


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    ends = [text.find(one) for one in stop if one in text]
    return text[: min(ends)] if ends else text


class StopTexts:
    """Finds stop texts in token ids."""

    def __init__(self, policy: Policy, stop: Sequence[str]) -> None:
        # Without stop texts no tokenizer is asked for: checks run models that have none.
        self._tokenizer, self._stop = policy.tokenizer if stop else None, stop
        # A stop text spans at most as many tokens as it has bytes, so an older one was seen before.
        self._tail = CHECK_EVERY + max((len(one.encode()) for one in stop), default=0)

    def reached(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> which sequences hold a stop text, bool [B] on the CPU; asked every CHECK_EVERY."""
        return torch.tensor(
            [self._holds(row[-self._tail :]) and self._holds(row) for row in ids.cpu()]
        )

    def length(self, ids: Tensor) -> int | None:
        """The number of tokens up to the one that completes the first stop text; None without any."""
        if not self._stop or not self._holds(ids):
            return None
        low, high = 1, len(ids)
        while low < high:  # what the first t tokens hold, more tokens hold too
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(ids[:middle]) else (middle + 1, high)
        return low

    def _holds(self, ids: Tensor) -> bool:
        assert self._tokenizer is not None
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return any(one in text for one in self._stop)  # type: ignore[operator]
