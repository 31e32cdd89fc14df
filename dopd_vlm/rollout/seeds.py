"""Seeds of completions: functions of what is drawn, never of the batch or the process."""

import zlib

import numpy as np


def mixed_seed(*parts: int) -> int:
    """One seed in [0, 2^63) from several non-negative integers; equal parts, equal seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def sequence_seed(sampling_seed: int, uid: str, number: int, index: int) -> int:
    """The seed of one completion: nothing of its batch or process enters."""
    return mixed_seed(sampling_seed, zlib.crc32(uid.encode()), number, index)
