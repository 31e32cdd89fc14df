"""What comes out of a parcel is what went in, whether shared memory has room or not."""

import pickle
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dopd_vlm.training import parcel
from dopd_vlm.training.parcel import ALIGNED, pack, unpack

Usage = namedtuple("Usage", "total used free")
DTYPES = (np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_)


@given(
    st.lists(arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_dims=0, min_side=0)))
)
def test_arrays_and_tensors_come_out_equal_and_writable(values):
    tensors = [torch.from_numpy(np.array(value)) for value in values]
    found = unpack(pack({"a": values, "t": tensors, "text": "x"}))
    assert found["text"] == "x"
    for given_, made in zip(values, found["a"], strict=True):
        assert given_.dtype == made.dtype and given_.tobytes() == made.tobytes()
    for given_, made in zip(tensors, found["t"], strict=True):
        assert given_.dtype == made.dtype and given_.shape == made.shape
        assert given_.numpy().tobytes() == made.numpy().tobytes()
        made.zero_()


def test_tensors_lie_in_the_block_and_nowhere_else():
    value = {
        "pixels": torch.randn(300, 70),
        "ids": torch.arange(5),
        "half": torch.ones(3).bfloat16(),
    }
    packed = pack(value)
    assert isinstance(packed.block, torch.Tensor) and len(packed.head) < 2000
    assert packed.sizes == (300 * 70 * 4, 5 * 8) and len(packed.block) % ALIGNED == 0
    found = unpack(packed)
    found["pixels"][7, 3] = 123.0
    assert 123.0 in packed.block[: packed.sizes[0]].view(torch.float32)
    assert torch.equal(found["half"], value["half"]) and torch.equal(found["ids"], value["ids"])


@pytest.mark.parametrize("times, kind", [(3.9, bytes), (4.2, torch.Tensor)])
def test_without_room_in_shared_memory_the_block_goes_as_bytes(monkeypatch, times, kind):
    value = {"pixels": torch.randn(64, 64)}
    free = int(times * 64 * 64 * 4)
    monkeypatch.setattr(parcel.shutil, "disk_usage", lambda path: Usage(0, 0, free))
    packed = pack(value)
    assert isinstance(packed.block, kind)
    again = pickle.loads(pickle.dumps(packed))
    assert torch.equal(unpack(again)["pixels"], value["pixels"])
    assert torch.equal(unpack(replace(packed))["pixels"].mul_(2), value["pixels"] * 2)
