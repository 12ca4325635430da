"""Reads the tensors of a legacy torch file (five pickles, then raw storages) without torch and without running code.

The unpickler knows four names, and none of them does anything but describe numbers.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float32 | np.int64]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the file before its storage is read; ``offset`` and ``stride`` count elements."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, storage: Array) -> Array:
        """Return the tensor in its storage; UnpicklingError where it would reach outside."""
        from numpy.lib.stride_tricks import as_strided

        last = self.offset + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        if min(self.offset, last, *self.shape, *self.stride, 0) < 0 or last >= len(storage):
            msg = f"weights: expected tensors inside their storage, received element {last} of {len(storage)}"
            raise pickle.UnpicklingError(msg)
        steps = tuple(step * storage.itemsize for step in self.stride)
        return as_strided(storage[self.offset :], self.shape, steps, writeable=False)


def _rebuild(
    storage: tuple[str, ...], offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Tensor:
    """Stand for ``torch._utils._rebuild_tensor_v2``."""
    return _Tensor(storage[2], storage[1], offset, shape, stride)


class _Reader(pickle.Unpickler):
    """Builds dicts of _Tensor; any other global is an error."""

    NAMES: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the stand-in of an allowed name."""
        try:
            return self.NAMES[module, name]
        except KeyError:
            msg = f"weights: expected tensors only, received {module}.{name}"
            raise pickle.UnpicklingError(msg) from None

    def persistent_load(self, pid: tuple[str, ...], /) -> tuple[str, ...]:
        """Return a storage's reference: ("storage", dtype, key, device, elements, view)."""
        return pid


def read_tensors(data: bytes) -> dict[str, Array]:
    """Return name -> array of a legacy torch file's state dict; UnpicklingError where it holds more than that."""
    import numpy as np

    stream = io.BytesIO(data)
    _magic, _protocol, _system, tensors, keys = (_Reader(stream).load() for _ in range(5))
    dtypes = {tensor.key: np.dtype(tensor.dtype) for tensor in tensors.values()}
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        storages[key] = np.frombuffer(stream.read(count * dtypes[key].itemsize), dtypes[key], count)
    return {name: tensor.view(storages[tensor.key]) for name, tensor in tensors.items()}
