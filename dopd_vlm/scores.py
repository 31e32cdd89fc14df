"""Hidden states at the positions that predict each completion token; only these ever reach a head.

Shapes: B sequences, T completion tokens, L padded length, H hidden size.
"""

from torch import Tensor

from dopd_vlm.encode import Batch
from dopd_vlm.models import Policy


def completion_hidden(policy: Policy, batch: Batch) -> Tensor:
    """[B, T, H] last hidden states that predict the completion; rows behind the mask are arbitrary.

    Calls the backbone, not the text decoder: on a vision-language model the latter would read image
    placeholders as words. Gradient as the caller's mode says.
    """
    batch = batch.to(policy.device)
    hidden = policy.backbone(**batch.inputs, use_cache=False).last_hidden_state
    return hidden.gather(1, batch.positions[..., None].expand(-1, -1, hidden.shape[-1]))
