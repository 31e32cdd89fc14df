"""Hidden states of completions, and the forward of a prompt that all its completions share.

Only hidden states at positions that predict a completion token ever reach a head. Attention of a
completion token reads the keys and values of its prompt, so that prompts and their images are encoded
once, with gradient where the caller's mode has one.

Shapes: U prompts padded on the left to P, B completions that each follow one of them, T tokens of a
completion, H hidden size.
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

from dopd_vlm.models.encoder import Batch
from dopd_vlm.models.image_features import StepFeatures, image_inputs
from dopd_vlm.models.policy import Policy


def completion_hidden(policy: Policy, batch: Batch, features: StepFeatures | None = None) -> Tensor:
    """[B, T, H] last hidden states that predict the completion; masked rows are arbitrary.

    Calls the backbone, not the text decoder: on a vision-language model the latter would read image
    placeholders as words. Gradient as the caller's mode says. Where completions share prompts, each
    prompt is encoded once and the completions read its keys and values. `features` holds what the
    step's images became; without it, the images of this batch go through the tower.
    """
    batch = batch.to(policy.device)
    prompts = {**batch.prompts, **image_inputs(policy, batch.sources, features)}
    is_shared = len(batch.sources) < len(batch.owner)
    return _shared(policy, batch, prompts) if is_shared else _whole(policy, batch, prompts)


def _shared(policy: Policy, batch: Batch, prompts: dict[str, Any]) -> Tensor:
    prefix = select_(prefill(policy, prompts), batch.owner)
    first = prefix.last_hidden[:, None]
    if batch.mask.shape[1] == 1:
        return first
    # Nothing is predicted from the last token.
    rest, _ = extend_(policy, prefix, batch.completion_ids[:, :-1], batch.mask[:, :-1])
    return torch.cat([first, rest], dim=1)


def _whole(policy: Policy, batch: Batch, prompts: dict[str, Any]) -> Tensor:
    order = batch.owner
    ids, mask = batch.completion_ids, batch.mask
    positions = prompt_positions(policy, prompts)
    inputs = {
        **prompts,
        "input_ids": torch.cat([prompts["input_ids"][order], ids[:, :-1]], 1),
        "attention_mask": torch.cat([prompts["attention_mask"][order], mask[:, :-1].long()], 1),
        "position_ids": torch.cat(
            [positions, completion_positions(positions, ids.shape[1] - 1)], -1
        ),
    }
    for name in sorted({name for source in batch.sources for name in source.token_inputs}):
        inputs[name] = torch.nn.functional.pad(prompts[name][order], (0, ids.shape[1] - 1))
    hidden = policy.backbone(**inputs, use_cache=False).last_hidden_state
    return hidden[:, prompts["input_ids"].shape[1] - 1 :]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """KV cache and positions of B sequences."""

    cache: Cache
    """Keys and values; `extend_` adds to it in place."""
    mask: Tensor
    """int64 [B, tokens so far], 0 at padding."""
    next_position: Tensor
    """int64 [B], rotary position of the next token."""
    last_hidden: Tensor
    """[B, H] at the last prompt token: what predicts the first completion token."""


def can_share(policy: Policy) -> bool:
    """Whether completions may read their prompt's keys and values: its family allows it, and all are kept (no
    sliding window, no recurrence)."""
    if not policy.family.can_share_prompts:
        return False
    layers = DynamicCache(config=policy.model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def prefill(policy: Policy, prompts: Mapping[str, Any]) -> Prefix:
    """Forward of left-padded prompts [U, P] with their images, or what these became."""
    positions = prompt_positions(policy, prompts)
    output = policy.backbone(**prompts, position_ids=positions, use_cache=True)
    return Prefix(
        cache=output[_cache_name(type(policy.backbone))],
        mask=prompts["attention_mask"],
        next_position=_after(positions),
        last_hidden=output.last_hidden_state[:, -1],
    )


def select_(prefix: Prefix, rows: Tensor) -> Prefix:
    """The prefix of the sequences `rows`, int64 [B]: repeated, reordered or fewer of them.

    The given prefix's cache is changed in place: use the returned prefix from here on.
    """
    for layer in plain_layers(prefix.cache):
        layer.batch_select_indices(rows)
    return Prefix(
        cache=prefix.cache,
        mask=prefix.mask[rows],
        next_position=prefix.next_position[rows],
        last_hidden=prefix.last_hidden[rows],
    )


def extend_(policy: Policy, prefix: Prefix, ids: Tensor, mask: Tensor) -> tuple[Tensor, Prefix]:
    """Hidden states [B, T, H] of the next tokens ids [B, T], and the prefix that includes them.

    `mask` [B, T] is 0 at padding after the last token. The given prefix's cache grows in place: use the
    returned prefix from here on.
    """
    offset = torch.arange(ids.shape[1], device=ids.device)
    positions = prefix.next_position[:, None] + offset
    whole = torch.cat([prefix.mask, mask.to(prefix.mask.dtype)], dim=1)
    hidden = policy.backbone(
        input_ids=ids,
        attention_mask=_finished_mask(policy, prefix, whole) if ids.shape[1] == 1 else whole,
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


def _finished_mask(policy: Policy, prefix: Prefix, mask: Tensor) -> Tensor:
    """What the next token of each sequence may read, as sdpa takes it: bool [B, 1, 1, tokens].

    From [B, tokens] transformers makes the same, but first reads whether anything is masked at all, and
    for every token of a decode loop the host then waits for the device.
    """
    attention = policy.model.config.get_text_config()._attn_implementation
    is_plain = all(isinstance(layer, RoomyLayer) for layer in prefix.cache.layers)
    return mask[:, None, None].bool() if attention == "sdpa" and is_plain else mask


@cache
def _cache_name(backbone: type) -> str:
    """What a backbone calls its cache: `past_key_values`, or `cache` since transformers 5.23."""
    return (
        "cache" if "cache" in inspect.signature(backbone.forward).parameters else "past_key_values"
    )


def prompt_positions(policy: Policy, prompts: Mapping[str, Any]) -> Tensor:
    """Rotary positions of left-padded prompts: [U, P], or [3, U, P] for time, height and width."""
    mask = prompts["attention_mask"]
    if "image_grid_thw" in prompts and policy.family.has_3d_positions:
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
    return positions.expand(3, -1, -1) if policy.family.has_3d_positions else positions


class RoomyLayer(DynamicLayer):
    """Keys and values in a buffer with room for tokens to come: adding one copies one.

    No gradient: `DynamicLayer` copies everything for each token, but keeps the graph.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._room = room
        self._length = keys.shape[-2]
        self._buffers = (_make_room(keys, room), _make_room(values, room))
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[..., : self._length, :] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes after the last token; returns all keys and values so far."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        keys, values = self._buffers
        if self._length > keys.shape[-2]:
            room = key_states.shape[-2] + self._room
            self._buffers = (_make_room(keys, room), _make_room(values, room))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start : self._length, :] = states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these sequences."""
        keys, values = self._buffers
        self._buffers = (keys[indices], values[indices])
        self._show()


def add_room_(prefix: Prefix, rows: Tensor, room: int) -> Prefix:
    """`select_`, and buffers that grow by `room` tokens whenever they are full; no gradient."""
    selected = select_(prefix, rows)
    roomy = []
    for layer in plain_layers(selected.cache):
        assert layer.keys is not None and layer.values is not None
        roomy.append(RoomyLayer(layer.keys, layer.values, room))
    selected.cache.layers = roomy
    return selected


def plain_layers(cache: Cache) -> list[DynamicLayer]:
    """The cache's layers, of a model that `can_share`."""
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def _make_room(states: Tensor, room: int) -> Tensor:
    size, heads, length, width = states.shape
    buffer = states.new_empty(size, heads, length + room, width)
    buffer[..., :length, :] = states
    return buffer
