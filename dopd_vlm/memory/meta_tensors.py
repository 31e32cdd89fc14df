"""A dry run on shapes: model code runs as it is, float tensors have sizes and no data, and bytes are counted.

Weights, images and what is computed from them live on torch's meta device. Ids, masks and sizes of
images are real tensors on the CPU, so that code which looks at them goes its usual way. What depends on
float data is made up (`_made_up`).
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages born under it that are still alive, and their highest sum.

    `wide` is the part of tensors as wide as the vocabulary, the chunks of logits; `wide_at_peak` what
    of the peak they were.
    """

    def __init__(self, vocab_size: int | None = None) -> None:
        super().__init__()
        self.now = self.peak = self.wide = self.wide_at_peak = 0
        self._vocab_size = vocab_size
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def take_peak(self) -> tuple[int, int]:
        """The peak and its wide part since the last call."""
        taken = self.peak, self.wide_at_peak
        self.peak, self.wide_at_peak = self.now, self.wide
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):  # born before, e.g. a weight: its views cost nothing
                self._known.add(leaf.untyped_storage())
        result = _run(func, args, kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        wide = size if self._is_wide(tensor) else 0
        self._add(size, wide)
        if self.now > self.peak:
            self.peak, self.wide_at_peak = self.now, self.wide
        weakref.finalize(storage, self._add, -size, -wide)

    def _add(self, size: int, wide: int) -> None:
        self.now += size
        self.wide += wide

    def _is_wide(self, tensor: Tensor) -> bool:
        if self._vocab_size is None or not tensor.is_floating_point():
            return False
        size = tensor.shape[-1] if tensor.ndim else 0
        return size == self._vocab_size or (tensor.ndim == 1 and size > self._vocab_size)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator where floats have no data and integers do; without meta tensors, as it is."""
    if func is aten._assert_async.msg:
        return None  # what it looks at is made up
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_named = str(kwargs.get("device")) == "meta"
    if not is_named and not any(t.is_meta for t in tensors):
        return func(*args, **kwargs)
    if func is aten._to_copy.default:
        return _converted(args[0], kwargs)
    if func is aten._local_scalar_dense.default:
        return 1.0  # a total, an upstream gradient: in range, and no reason to do more
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        args = (args[0], [part for at in args[1] for part in _positions(at)], *args[2:])
    result = func(*tree_map(_on_meta, args), **tree_map(_on_meta, kwargs))
    if not any(isinstance(leaf, Tensor) and _is_number(leaf) for leaf in tree_leaves(result)):
        return result
    if not tensors:  # a factory: arange, zeros, full
        return func(*args, **{**kwargs, "device": torch.device("cpu")})
    return tree_map(lambda leaf: _made_up(func, leaf), result)


def _converted(tensor: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """A copy in another type; another device is the same one here."""
    dtype = kwargs.get("dtype") or tensor.dtype
    if dtype == tensor.dtype:
        # A real step has all of its tensors on one device and does not copy either.
        return tensor.detach()
    if dtype.is_floating_point:
        return torch.empty(tensor.shape, dtype=dtype, device="meta")
    return (torch.zeros(tensor.shape) if tensor.is_meta else tensor).to(dtype)


def _positions(index: Any) -> tuple[Any, ...]:
    """A mask as the positions that it chooses, one tensor a dimension."""
    is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
    return index.nonzero(as_tuple=True) if is_mask else (index,)


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_meta and not tensor.is_floating_point() and not tensor.is_complex()


def _on_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _made_up(func: Any, leaf: Any) -> Any:
    """Integers that floats without data decide: zeros; but `<` and `>=` hold here and there.

    Routing compares with both, so that each of the four regimes gets a quarter of the tokens.
    """
    if not isinstance(leaf, Tensor) or not _is_number(leaf):
        return leaf
    name, place = func.overloadpacket.__name__, torch.arange(leaf.numel()).view(leaf.shape)
    if name == "lt":
        return place % 2 == 0
    return place // 2 % 2 == 0 if name == "ge" else torch.zeros(leaf.shape, dtype=leaf.dtype)


LOWERED = {
    functional.linear,
    functional.conv2d,
    functional.conv3d,
    functional.scaled_dot_product_attention,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
}
"""What autocast runs in bfloat16, of what transformers' models call."""
RAISED = {functional.layer_norm, functional.softmax}
"""What autocast runs in float32 on CUDA (and leaves alone on CPU)."""


class DryCalls(TorchFunctionMode):
    """Tensors that say they are on `device`, and fused attention, which shapes alone do not get."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = torch.device(device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.device.__get__:  # type: ignore[attr-defined]
            return self._device
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        if func is torch.autograd.backward:
            with self:
                return _backward(*args)
        if self._device.type != "cpu":
            args, kwargs = tree_map(self._nowhere, args), tree_map(self._nowhere, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _nowhere(self, leaf: Any) -> Any:
        is_device = isinstance(leaf, torch.device | str) and str(leaf) == self._device.type
        return torch.device("meta") if is_device else leaf


class Autocast(TorchFunctionMode):
    """torch's own knows no tensors without data. Casts of trained weights live until it ends."""

    def __init__(self, device: str, *, keeps_weights: bool = True) -> None:
        super().__init__()
        self._raised = RAISED if device == "cuda" else set()
        self._weights: dict[int, Tensor] | None = {} if keeps_weights else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.backward:
            with self:
                return _backward(*args)
        if func in LOWERED:
            args, kwargs = tree_map(self._low, args), tree_map(self._low, kwargs)
        elif func in self._raised:
            args = tree_map(lambda leaf: _as(leaf, torch.bfloat16, torch.float32), args)
        return func(*args, **kwargs)

    def _low(self, leaf: Any) -> Any:
        is_weight = isinstance(leaf, Tensor) and leaf.is_leaf and leaf.requires_grad
        if not is_weight or self._weights is None:
            return _as(leaf, torch.float32, torch.bfloat16)
        if id(leaf) not in self._weights:
            self._weights[id(leaf)] = _as(leaf, torch.float32, torch.bfloat16)
        return self._weights[id(leaf)]


def _backward(tensors: Any, grads: Any = None) -> None:
    """torch.autograd.backward without the look for modes, which are off inside what they intercept.

    A checkpointed layer recomputes in there, and must meet them as the first time.
    """
    tensors = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
    grads = tuple(torch.ones_like(t) for t in tensors) if grads is None else tuple(grads)
    if tensors:
        _engine_run_backward(
            tensors, grads, False, False, (), allow_unreachable=True, accumulate_grad=True
        )


def _as(leaf: Any, old: torch.dtype, new: torch.dtype) -> Any:
    return leaf.to(new) if isinstance(leaf, Tensor) and leaf.dtype == old else leaf


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **_: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # torch makes numbers of it
        attn_mask = query.new_empty(attn_mask.shape)
    out = _Fused.apply(query, key, value, attn_mask)
    assert isinstance(out, Tensor)
    return out


class _Fused(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: its inputs, its output and one number a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows, mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
