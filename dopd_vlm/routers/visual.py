"""`visual_advantage`: tokens and completions weigh by what the teacher reads off the image (VA-OPD)."""

import torch
from torch import Tensor

from dopd_vlm.routers.router import Router, Routing, Scores, everywhere

WHOLE, DEGRADED = ("teacher", "plain"), ("teacher", "degraded")
TOP_SHARE = 0.2
TOP_WEIGHT = 0.5
"""lambda: the share of the upper tokens' mean in a completion's loss."""


def visual_advantage(scores: Scores, limits: None) -> Routing:
    """Weights from VA = max(log T(y | image) - log T(y | degraded image), 0).

    Per completion: TOP_WEIGHT x mean over the TOP_SHARE of tokens with the largest VA, plus the rest's mean
    times 1 - TOP_WEIGHT. Completions of a prompt: softmax of their z-scored mean VA, times their number.
    Source: 2605.21924, Eq. numbers unread; whether the upper tokens are of a completion or of the batch is ours.
    """
    advantage = scores.ratio(WHOLE, DEGRADED).clamp(min=0.0) * scores.mask
    lengths = scores.mask.sum(-1)
    per_token = torch.stack(
        [_halves(row[mask], len(row)) for row, mask in zip(advantage, scores.mask, strict=True)]
    )
    mean = advantage.sum(-1) / lengths.clamp(min=1)
    weight = per_token * _among_siblings(mean, scores.prompts)[:, None]
    return Routing(route=everywhere(scores.mask), weight=weight)


def _halves(advantage: Tensor, width: int) -> Tensor:
    """Token weights of one completion; their mean over its tokens is 1.  [L] -> [width], 0 after L"""
    length = len(advantage)
    top = max(1, round(TOP_SHARE * length))
    weight = advantage.new_zeros(width)
    if top == length:  # no rest to set it against
        weight[:length] = 1.0
        return weight
    weight[:length] = (1.0 - TOP_WEIGHT) * length / (length - top)
    weight[advantage.argsort(descending=True, stable=True)[:top]] = TOP_WEIGHT * length / top
    return weight


def _among_siblings(mean: Tensor, prompts: Tensor) -> Tensor:
    """softmax of the z-scores within each prompt, times the number of its completions.  [B], [B] -> [B]"""
    weight = torch.ones_like(mean)
    for prompt in prompts.unique():
        ours = prompts == prompt
        values = mean[ours]
        spread = values.std(unbiased=False)
        if spread > 0:
            weight[ours] = ((values - values.mean()) / spread).softmax(0) * len(values)
    return weight


VISUAL = Router(name="visual_advantage", pairs=(WHOLE, DEGRADED), route=visual_advantage)
