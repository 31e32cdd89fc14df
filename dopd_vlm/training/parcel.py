"""An object with tensors -> bytes and one shared block, so that another process reads it without a copy.

Sent one by one, each tensor would cost a file descriptor and its image two copies.
"""

import io
import pickle
import shutil
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

ALIGNED = 64
"""Bytes: every array begins at a multiple."""
SHARED = Path("/dev/shm")
ROOM = 4
"""How many times a block must fit into shared memory: others of the same size are on their way."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A pickled object and the arrays it points to."""

    head: bytes
    sizes: tuple[int, ...]
    """Bytes of each array."""
    block: torch.Tensor | bytes
    """uint8 [N], the arrays one after the other; as bytes where shared memory has no room."""


def pack(value: Any) -> Parcel:
    """The value, its tensors (detached, on the CPU) and arrays taken out."""
    file, buffers = io.BytesIO(), []
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    arrays = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    sizes = tuple(len(array) for array in arrays)
    block = torch.zeros(sum(map(_padded, sizes)), dtype=torch.uint8)
    for start, array in zip(_starts(sizes), arrays, strict=False):
        block.numpy()[start : start + len(array)] = array
    # Containers have 64 MiB of shared memory, and die of one byte more.
    has_room = not SHARED.is_dir() or shutil.disk_usage(SHARED).free > ROOM * len(block)
    return Parcel(
        head=file.getvalue(), sizes=sizes, block=block if has_room else block.numpy().tobytes()
    )


def unpack(parcel: Parcel) -> Any:
    """The value; its tensors lie in the parcel's block."""
    block = parcel.block
    # A bytearray, as bytes cannot be written to.
    whole = (
        block.numpy()
        if isinstance(block, torch.Tensor)
        else np.frombuffer(bytearray(block), dtype=np.uint8)
    )
    places = zip(_starts(parcel.sizes), parcel.sizes, strict=False)
    return pickle.loads(parcel.head, buffers=[whole[start : start + n] for start, n in places])


class _Pickler(pickle.Pickler):
    """Tensors as NumPy arrays, whose data pickle hands out instead of copying it."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor) and obj.dtype != torch.bfloat16:
            return torch.from_numpy, (obj.detach().numpy(),)
        return NotImplemented


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _starts(sizes: tuple[int, ...]) -> list[int]:
    return list(accumulate(map(_padded, sizes), initial=0))
