"""What changes the distribution before a draw, in vLLM's order: see `sampling.Sampling`.

Shapes: B sequences, P prompt tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dopd_vlm.types import Sampling


def make_warpers(
    sampling: Sampling, suppressed_ids: Sequence[int], device: torch.device
) -> LogitsProcessorList:
    """Own list in a known order: whatever a checkpoint's generation_config asks for does not apply."""
    warpers = LogitsProcessorList()
    if suppressed_ids:
        warpers.append(SuppressTokensLogitsProcessor(list(suppressed_ids), device=str(device)))
    if sampling.temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers


@dataclass(kw_only=True)
class Penalties:
    """Penalties of the tokens so far; not transformers' own, which takes padding for a prompt's token
    and has no presence and no frequency penalty."""

    sampling: Sampling
    in_prompt: Tensor
    """bool [B, V]."""
    counts: Tensor
    """int32 [B, V], how often each sequence has drawn each token."""

    @classmethod
    def of(cls, sampling: Sampling, ids: Tensor, mask: Tensor, vocab_size: int) -> "Penalties":
        """Before the first draw after prompts ids [B, P] with mask [B, P]."""
        hits = torch.zeros(len(ids), vocab_size, dtype=torch.int32, device=ids.device)
        hits.scatter_add_(1, ids, mask.to(torch.int32))
        return cls(sampling=sampling, in_prompt=hits > 0, counts=torch.zeros_like(hits))

    def apply(self, logits: Tensor) -> Tensor:
        """Logits [B, V] after repetition, frequency and presence penalty."""
        drawn, repetition = self.counts > 0, self.sampling.repetition_penalty
        if repetition != 1.0:
            scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
            logits = torch.where(self.in_prompt | drawn, scaled, logits)
        return (
            logits - self.sampling.frequency_penalty * self.counts
            - self.sampling.presence_penalty * drawn
        )  # fmt: skip

    def add_(self, tokens: Tensor) -> None:
        """Counts the drawn tokens [B]."""
        ones = torch.ones_like(tokens, dtype=torch.int32)[:, None]
        self.counts.scatter_add_(1, tokens[:, None], ones)

    def select_(self, rows: Tensor) -> None:
        """Keeps these sequences."""
        self.in_prompt, self.counts = self.in_prompt[rows], self.counts[rows]
