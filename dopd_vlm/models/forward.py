"""A prompt's forward, done once and shared by all its completions.

Shapes: U prompts padded on the left to P, B completions that each follow one of them, T tokens of a
completion, H hidden size. Attention of a completion token reads the keys and values of its prompt,
so that prompts and their pictures are encoded once, with gradient where the caller's mode has one.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from dopd_vlm.models.policy import Policy


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """What the tokens after B sequences' tokens so far need of them."""

    cache: Cache
    """Keys and values; `extend` adds to it in place."""
    mask: Tensor
    """int64 [B, tokens so far], 0 at padding."""
    next_position: Tensor
    """int64 [B], rotary position of the next token."""
    last_hidden: Tensor
    """[B, H] at the last prompt token: what predicts the first completion token."""


def can_share(policy: Policy) -> bool:
    """Whether the model keeps plain keys and values of every token: no sliding window, no recurrence."""
    layers = DynamicCache(config=policy.model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def prefill(policy: Policy, prompts: Mapping[str, Any]) -> Prefix:
    """Forward of left-padded prompts [U, P] with their pictures, or what these became."""
    positions = prompt_positions(policy, prompts)
    output = policy.backbone(**prompts, position_ids=positions, use_cache=True)
    return Prefix(
        cache=output[_cache_name(type(policy.backbone))],
        mask=prompts["attention_mask"],
        next_position=_after(positions),
        last_hidden=output.last_hidden_state[:, -1],
    )


def select(prefix: Prefix, rows: Tensor) -> Prefix:
    """The prefix of the sequences `rows`, int64 [B]: repeated, reordered or fewer of them."""
    for layer in plain_layers(prefix.cache):
        layer.batch_select_indices(rows)
    return Prefix(
        cache=prefix.cache,
        mask=prefix.mask[rows],
        next_position=prefix.next_position[rows],
        last_hidden=prefix.last_hidden[rows],
    )


def extend(policy: Policy, prefix: Prefix, ids: Tensor, mask: Tensor) -> tuple[Tensor, Prefix]:
    """Hidden states [B, T, H] of the next tokens ids [B, T], and the prefix that includes them.

    `mask` [B, T] is 0 at padding behind the last token. The given prefix is used up.
    """
    offset = torch.arange(ids.shape[1], device=ids.device)
    positions = prefix.next_position[:, None] + offset
    whole = torch.cat([prefix.mask, mask.to(prefix.mask.dtype)], dim=1)
    hidden = policy.backbone(
        input_ids=ids,
        attention_mask=whole,
        position_ids=_as_rotary(policy, positions),
        use_cache=True,
        **{_cache_name(type(policy.backbone)): prefix.cache},
    ).last_hidden_state
    after = Prefix(
        cache=prefix.cache,
        mask=whole,
        next_position=prefix.next_position + ids.shape[1],
        last_hidden=prefix.last_hidden,
    )
    return hidden, after


@cache
def _cache_name(backbone: type) -> str:
    """What a backbone calls its cache: `past_key_values`, or `cache` since transformers 5.23."""
    return (
        "cache" if "cache" in inspect.signature(backbone.forward).parameters else "past_key_values"
    )


def prompt_positions(policy: Policy, prompts: Mapping[str, Any]) -> Tensor:
    """Rotary positions of left-padded prompts: [U, P], or [3, U, P] for time, height and width."""
    mask = prompts["attention_mask"]
    if "image_grid_thw" in prompts and _is_multimodal_rotary(policy):
        positions, _ = policy.backbone.get_rope_index(  # type: ignore[operator]
            prompts["input_ids"],
            mm_token_type_ids=prompts["mm_token_type_ids"],
            image_grid_thw=prompts["image_grid_thw"],
            attention_mask=mask,
        )
        return positions
    return _as_rotary(policy, (mask.cumsum(-1) - 1).clamp_min(0))


def completion_positions(positions: Tensor, num_tokens: int) -> Tensor:
    """Rotary positions [.., U, T] of the tokens that follow the prompts' positions [.., U, P]."""
    offset = torch.arange(num_tokens, device=positions.device)
    following = _after(positions)[:, None] + offset
    return following.expand(*positions.shape[:-1], num_tokens)


def _after(positions: Tensor) -> Tensor:
    """[U]: one more than the greatest position in any of the rotary axes."""
    greatest = positions.amax(-1)
    return (greatest.amax(0) if greatest.ndim == 2 else greatest) + 1


def _as_rotary(policy: Policy, positions: Tensor) -> Tensor:
    return positions.expand(3, -1, -1) if _is_multimodal_rotary(policy) else positions


def _is_multimodal_rotary(policy: Policy) -> bool:
    # The Qwen-VL families: they alone place picture tokens on three axes.
    return callable(getattr(policy.backbone, "get_rope_index", None))


class RoomyLayer(DynamicLayer):
    """Keys and values in a buffer with room for tokens to come: adding one copies one.

    No gradient: `DynamicLayer` copies everything for each token, but keeps the graph.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._room = room
        self._length = keys.shape[-2]
        self._buffers = (_with_room(keys, room), _with_room(values, room))
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[..., : self._length, :] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes behind the last token; returns all keys and values so far."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        keys, values = self._buffers
        if self._length > keys.shape[-2]:
            room = key_states.shape[-2] + self._room
            self._buffers = (_with_room(keys, room), _with_room(values, room))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start : self._length, :] = states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these sequences."""
        keys, values = self._buffers
        self._buffers = (keys[indices], values[indices])
        self._show()


def with_room(prefix: Prefix, rows: Tensor, room: int) -> Prefix:
    """`select`, and buffers that get room for `room` more tokens whenever they are full; no gradient."""
    chosen = select(prefix, rows)
    roomy = []
    for layer in plain_layers(chosen.cache):
        assert layer.keys is not None and layer.values is not None
        roomy.append(RoomyLayer(layer.keys, layer.values, room))
    chosen.cache.layers = roomy
    return chosen


def plain_layers(cache: Cache) -> list[DynamicLayer]:
    """The cache's layers, of a model that `can_share`."""
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def _with_room(states: Tensor, room: int) -> Tensor:
    size, heads, length, width = states.shape
    buffer = states.new_empty(size, heads, length + room, width)
    buffer[..., :length, :] = states
    return buffer
