"""Matrix products of a head on CPU: through oneDNN, by tiles that lie in the cache when they are used.

torch.mm calls MKL, which takes a third to a half more time for a few hundred rows. The operator that reaches
oneDNN without a copy of the weight is inductor's; where it is missing, torch.mm does.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

UPCAST_TILE = 8192
"""Rows of a lower-precision weight that are upcast at a time, so that no full copy exists."""
PRODUCT_TILE_BYTES = 4 << 20
"""Size of the result of one oneDNN product: it is still in the cache when it is copied or added."""
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_onednn(rows: Tensor) -> bool:
    return HAS_ONEDNN and rows.device.type == "cpu" and rows.dtype == torch.float32


def tiles(weight: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A weight by entries, in the dtype of the rows [C, ...] that are to be multiplied with it."""
    size = len(weight) if weight.dtype == rows.dtype else UPCAST_TILE
    if _is_onednn(rows):
        size = min(size, max(1, PRODUCT_TILE_BYTES // (max(1, len(rows)) * rows.itemsize)))
    for start in range(0, len(weight), size):
        tile = slice(start, min(start + size, len(weight)))
        yield tile, weight[tile].to(rows.dtype)


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight.T of one dtype.  [C, H], [L, H] -> [C, L]"""
    if _is_onednn(rows):
        return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return rows @ weight.T


def product_(rows: Tensor, weight: Tensor, out: Tensor, *, adds: bool = False) -> None:
    """Writes `product` into out [C, L], or adds it."""
    if not _is_onednn(rows):
        out.addmm_(rows, weight.T, beta=int(adds))  # with beta 0 what was there is not read
    elif adds:
        out += product(rows, weight)
    else:
        out.copy_(product(rows, weight))
