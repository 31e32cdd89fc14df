"""What the vision towers make of a step's images: each image once per model.

Rollout, both targets and the loss of a step ask here. Completions of one prompt, prompts about one
image, and the plain and the privileged view where nothing is drawn, all read the same features.

Where the tower is trained, the loss reads features that are leaves of its graph: their gradients add
up over the micro-batches, and `backward` takes the sum once through the tower. By the chain rule that
is the gradient of the whole; activations of the tower exist for a few images at a time.

Shapes: M merged patches of an image, which are its tokens; H hidden size.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.images import GRID, join, split
from dopd_vlm.models.policy import Policy


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFeatures:
    """One image as a model's tower gives it, ready for the layers that read it."""

    kind: type
    """Of the tower's output."""
    pooled: Tensor
    """[M, H]"""
    deepstack: tuple[Tensor, ...] = ()
    """[M, H] for each of the first layers; empty for other models."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return (self.pooled, *self.deepstack)

    def leaf(self) -> "ImageFeatures":
        """The same values as leaves of a graph, at least float32: gradients add up in them."""

        def as_leaf(value: Tensor) -> Tensor:
            dtype = torch.promote_types(value.dtype, torch.float32)
            return value.detach().to(dtype).requires_grad_()

        pooled, *deepstack = (as_leaf(value) for value in self.tensors)
        return ImageFeatures(kind=self.kind, pooled=pooled, deepstack=tuple(deepstack))


@dataclass(kw_only=True)
class Tower:
    """What is known of one model's images."""

    raw: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    features: dict[str, ImageFeatures] = field(default_factory=dict)
    leaves: dict[str, ImageFeatures] = field(default_factory=dict)


class StepFeatures:
    """The features of one step, during which no weight changes."""

    def __init__(self) -> None:
        self._towers: dict[int, tuple[Policy, Tower]] = {}

    def of(self, policy: Policy, prompts: Sequence[EncodedPrompt]) -> Any:
        """The tower's output for all images of `prompts`, in order.

        If gradients are on and the tower is trained, returns leaf tensors; `backward` finishes the chain.
        """
        tower = self._tower(policy)
        keys = [key for prompt in prompts for key in prompt.image_keys]
        for prompt in prompts:
            if any(key not in tower.raw for key in prompt.image_keys):
                tower.raw |= dict(zip(prompt.image_keys, split(prompt.image_tensors), strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in tower.features]
        if missing:
            with torch.no_grad():
                tower.features |= dict(
                    zip(missing, _features_of(policy, tower, missing), strict=True)
                )
        known = tower.features
        if torch.is_grad_enabled() and _is_trained(policy):
            for key in keys:
                if key not in tower.leaves:
                    tower.leaves[key] = tower.features[key].leaf()
            known = tower.leaves
        return _as_output([known[key] for key in keys])

    def backward(
        self, policy: Policy, at_once: int, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """Takes the gradients that arrived at the leaves into the tower, `at_once` images at a time.

        `autocast` is the context that the tower ran in before.
        """
        tower = self._tower(policy)
        leaves, tower.leaves = tower.leaves, {}
        for start in range(0, len(leaves), at_once):
            keys = list(leaves)[start : start + at_once]
            with torch.enable_grad(), autocast():
                values_of = _features_of(policy, tower, keys)
            pairs = [
                (value, leaf.grad.to(value.dtype))
                for key, one in zip(keys, values_of, strict=True)
                for value, leaf in zip(one.tensors, leaves[key].tensors, strict=True)
                if leaf.grad is not None
            ]
            values, grads = zip(*pairs, strict=True) if pairs else ((), ())
            torch.autograd.backward(values, grads)

    def keep_only(self, policy: Policy) -> None:
        """Forgets the images of other models."""
        self._towers = {id(policy.model): (policy, self._tower(policy))}

    def _tower(self, policy: Policy) -> Tower:
        return self._towers.setdefault(id(policy.model), (policy, Tower()))[1]


def image_inputs(
    policy: Policy, prompts: Sequence[EncodedPrompt], features: StepFeatures | None
) -> dict[str, Any]:
    """Arguments of the backbone for the images of `prompts`: features where they can be had, else pixels."""
    with_images = [prompt for prompt in prompts if prompt.image_tensors]
    if not with_images:
        return {}
    if features is None or not can_share_features(policy, with_images):
        inputs = join([prompt.image_tensors for prompt in with_images])
        return {name: value.to(policy.device) for name, value in inputs.items()}
    grids = torch.cat([prompt.image_tensors[GRID] for prompt in with_images])
    return {
        "mm_encoder_outputs": {"image": features.of(policy, with_images)},
        GRID: grids.to(policy.device),
    }


def can_share_features(policy: Policy, prompts: Sequence[EncodedPrompt]) -> bool:
    """Whether the model takes features in place of pixels, and its processor keeps images apart."""
    return _takes_features(type(policy.backbone)) and all(p.image_keys for p in prompts)


@cache
def _takes_features(backbone: type) -> bool:
    # Older transformers has no such argument: pixels then go with every forward.
    has_argument = "mm_encoder_outputs" in inspect.signature(backbone.forward).parameters
    return has_argument and callable(getattr(backbone, "get_image_features", None))


def _is_trained(policy: Policy) -> bool:
    encoder = policy.backbone.get_encoder(modality="image")  # type: ignore[operator]
    return any(parameter.requires_grad for parameter in encoder.parameters())


def _features_of(policy: Policy, tower: Tower, keys: Sequence[str]) -> list[ImageFeatures]:
    """The images through the tower, in one batch; gradient as the caller's mode says."""
    inputs = join([tower.raw[key] for key in keys])
    output = policy.backbone.get_image_features(  # type: ignore[operator]
        **{name: value.to(policy.device) for name, value in inputs.items()}, return_dict=True
    )
    pooled, deepstack = output.pooler_output, output.get("deepstack_features") or []
    return [
        ImageFeatures(
            kind=type(output), pooled=pooled[place], deepstack=tuple(d[place] for d in deepstack)
        )
        for place in range(len(keys))
    ]


def _as_output(images: Sequence[ImageFeatures]) -> Any:
    layers = list(zip(*(one.deepstack for one in images), strict=True))
    more = {"deepstack_features": layers} if layers else {}
    return images[0].kind(pooler_output=tuple(one.pooled for one in images), **more)
