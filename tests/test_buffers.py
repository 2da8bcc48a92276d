import gc

import jax
import numpy as np

from chns_jax.sampling.buffers import Buffers


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_nobody_has_it():
    buffers = Buffers()
    first = buffers.empty((4, 8), np.int16)
    second = buffers.empty((4, 8), np.int16)
    assert not np.shares_memory(first, second)
    where = address(first)
    del first
    assert address(buffers.empty((4, 8), np.int16)) == where


def test_views_keep_their_memory():
    """Also views of views, in another shape and dtype, and those that JAX uses as they are."""
    buffers = Buffers()
    keepers = [
        lambda array: array[1:3],
        lambda array: array.reshape(-1)[5:].view(np.uint8),
        lambda array: {"rows": list(array)},
        lambda array: memoryview(array),
        jax.device_put,
        jax.numpy.asarray,
    ]
    kept = []
    for value, keep in enumerate(keepers):
        array = buffers.empty((64, 64), np.int16)
        array[:] = value
        kept.append(keep(array))
        del array
    gc.collect()
    buffers.empty((64, 64), np.int16)[:] = -1
    assert (kept[0] == 0).all()
    assert (kept[1].view(np.int16) == 1).all()
    assert all((row == 2).all() for row in kept[2]["rows"])
    assert (np.asarray(kept[3]) == 3).all()
    assert (np.asarray(kept[4]) == 4).all() and (np.asarray(kept[5]) == 5).all()


def test_other_shapes_and_dtypes_get_memory_of_their_own():
    buffers = Buffers()
    for shape, dtype in [((2, 3), np.int16), ((2, 3), np.int32), ((3, 2), np.int16), ((), float)]:
        made = buffers.empty(shape, np.dtype(dtype))
        assert made.shape == shape and made.dtype == dtype and address(made) % 64 == 0
