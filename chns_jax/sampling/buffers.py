"""Arrays that are used again: fresh memory costs as much as reading what is written into it."""

from __future__ import annotations

import math
import sys
from threading import Lock

import numpy as np
from numpy.typing import DTypeLike


def _references(arrays: list[np.ndarray], i: int) -> int:
    return sys.getrefcount(arrays[i])


ALIGNED = 64  # bytes; on a CPU, JAX copies what does not begin at a multiple of them
ALONE = _references([np.empty(0)], 0)  # of what nothing but its list refers to


class Buffers:
    """Gives arrays whose memory nobody else has any more.

    What it gave is taken back when neither that array nor a view of it is left, wherever they went:
    JAX keeps the array that it copies to a device until that is done, or for as long as it uses its
    memory. No more is held than was out at one time.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._owned: list[np.ndarray] = []  # bytes

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array of unknown content."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            for i in range(len(self._owned)):
                # Every view of it, and every view of that, refers to it.
                if _references(self._owned, i) == ALONE and len(self._owned[i]) == size + ALIGNED:
                    break
            else:
                self._owned.append(np.empty(size + ALIGNED, np.uint8))
                i = len(self._owned) - 1
            first = -self._owned[i].ctypes.data % ALIGNED
            return self._owned[i][first : first + size].view(dtype).reshape(shape)
