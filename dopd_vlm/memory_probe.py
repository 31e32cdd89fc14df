"""Counts the bytes of tensors without data: what lives at once while code runs on the meta device.

Attention is counted as a fused kernel's: queries, keys, values, output and one number a row are
kept, no matrix of weights.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PROBE = "memory_probe"
"""Name of the attention implementation that has sizes and no data."""


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages born under it that are still alive, and their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Sizes of pictures stay real, and what is computed from them meets tensors without data.
        args, kwargs = _all_on_meta(args, kwargs or {})
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):  # born before, e.g. a weight: its views cost nothing
                self._known.add(leaf.untyped_storage())
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _all_on_meta(args: Any, kwargs: Any) -> tuple[Any, Any]:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if {leaf.device.type for leaf in leaves} != {"meta", "cpu"}:
        return args, kwargs

    def move(leaf: Any) -> Any:
        return leaf.to("meta") if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return tree_map(move, args), tree_map(move, kwargs)


class _Fused(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    batch, heads, length, _ = query.shape
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and length > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    elif groups > 1:
        query = query.reshape(batch, heads // groups, groups, -1)
    out = _Fused.apply(query, key, value)
    assert isinstance(out, Tensor)
    return out.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(PROBE, _attention)
AttentionMaskInterface.register(PROBE, _no_mask)
