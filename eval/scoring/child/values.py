"""Values between a program and its tests: JSON, with a tag where JSON lacks the type.

Data only: reading makes nothing but exact builtin types, so that no method of the program's own,
such as an `__eq__` that is always true, reaches the tests. What is no plain value stays with its
owner and travels as a reference.
"""

import sys
from collections.abc import Callable
from typing import Any

LARGEST = 1 << 53
"""Integers up to here are written as they are; json limits how many decimal digits it reads."""
KINDS: tuple[Any, ...] = (
    bool, int, float, complex, str, bytes, bytearray, tuple, list, frozenset, set, dict,
)  # fmt: skip


def encode(value: Any, refer: Callable[[Any], int]) -> Any:
    """The JSON form of a value; `refer` numbers what has none.

    Subclasses become their builtin type, numpy's scalars Python's.
    """
    if value is None:
        return None
    kind = next((one for one in KINDS if issubclass(type(value), one)), None)
    if kind is None and _is_numpy_scalar(value):
        return encode(value.item(), refer)
    if kind in (bool, str):
        return str.__str__(value) if kind is str else bool(value)
    if kind is int:
        whole = int.__pos__(value)
        return whole if abs(whole) < LARGEST else {"int": hex(whole)}
    if kind is float:
        return {"float": float.__repr__(value)}
    if kind is complex:
        real, imaginary = complex.real.__get__(value), complex.imag.__get__(value)
        return {"complex": [float.__repr__(real), float.__repr__(imaginary)]}
    if kind in (bytes, bytearray):
        return {kind.__name__: bytes(value).hex()}
    if kind is dict:
        pairs = dict.items(value)
        return {"dict": [[encode(key, refer), encode(one, refer)] for key, one in pairs]}
    if kind is None:
        return {"reference": refer(value)}
    items = [encode(one, refer) for one in kind.__iter__(value)]
    return items if kind is list else {kind.__name__: items}


def _is_numpy_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def decode(data: Any, resolve: Callable[[int], Any]) -> Any:
    """The value of a JSON form; `resolve` gives the object of a reference.

    Raises:
        ValueError, TypeError: it is no such form, or a set holds what cannot be in one.
    """
    if data is None or type(data) in (bool, int, str):
        return data
    if type(data) is list:
        return [decode(one, resolve) for one in data]
    if type(data) is not dict or len(data) != 1:
        raise ValueError(f"no value: {str(data)[:80]}")
    ((kind, content),) = data.items()
    if kind not in READERS:
        raise ValueError(f"no kind of value: {kind[:80]!r}")
    return READERS[kind](content, resolve)


Reader = Callable[[Any, Callable[[int], Any]], Any]
READERS: dict[str, Reader] = {
    "int": lambda content, _: int(content, 16),
    "float": lambda content, _: float(content),
    "complex": lambda content, _: complex(*map(float, content)),
    "bytes": lambda content, _: bytes.fromhex(content),
    "bytearray": lambda content, _: bytearray.fromhex(content),
    "tuple": lambda content, resolve: tuple(decode(one, resolve) for one in content),
    "set": lambda content, resolve: {decode(one, resolve) for one in content},
    "frozenset": lambda content, resolve: frozenset(decode(one, resolve) for one in content),
    "dict": lambda content, resolve: {
        decode(key, resolve): decode(one, resolve) for key, one in content
    },
    "reference": lambda content, resolve: resolve(int(content)),
}
