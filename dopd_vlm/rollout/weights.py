"""The weights that an engine gets: whole tensors by the names of a Hugging Face checkpoint."""

from collections.abc import Iterator

from torch import Tensor

from dopd_vlm.models.policy import Policy


def policy_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter, the tensors themselves and without gradient."""
    for name, parameter in policy.model.named_parameters():
        yield name, parameter.detach()
