"""Convolution of each channel by itself, of 1-D and 2-D maps, as fast as a CPU allows.

XLA's own takes ten times as long on a CPU as a sum of shifted maps, which it computes in one loop.
There it is such a sum, and so is its gradient; elsewhere both are XLA's own.
"""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

from chns_jax.encoders.once import computed_once
from chns_jax.encoders.sums import at_least_float32, sum_of_all

IN_CACHE = 2**18  # values of a map
STRETCHES = 16  # of frames, that are summed first


def depthwise(x: Float[Array, "b *n c"], kernel: Float[Array, "*k 1 c"]) -> Float[Array, "b *n c"]:
    """The convolution with a kernel of odd sizes, padded with zeros to the input's length."""
    if any(map(is_symbolic_dim, x.shape)):  # of any length: for programs that are not JAX's
        return _plain(x, kernel)
    return _depthwise(x, kernel)


def _plain(x, kernel):
    axes = "HW"[: x.ndim - 2]
    return jax.lax.conv_general_dilated(
        x, kernel, (1,) * len(axes), "SAME",
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


@jax.custom_vjp
def _depthwise(x, kernel):
    return jax.lax.platform_dependent(x, kernel, cpu=_of_shifted, default=_plain)


def _forward(x, kernel):
    return _depthwise(x, kernel), (x, kernel)


def _backward(x_and_kernel, dy):
    x, kernel = x_and_kernel

    def of_shifted(x, kernel, dy):
        mirrored = jnp.flip(kernel, range(kernel.ndim - 2))
        return _of_shifted(dy, mirrored), _kernel_gradient(x, kernel, dy)

    def plain(x, kernel, dy):
        return jax.vjp(_plain, x, kernel)[1](dy)

    return jax.lax.platform_dependent(x, kernel, dy, cpu=of_shifted, default=plain)


_depthwise.defvjp(_forward, _backward)


def _of_shifted(x, kernel):
    """Loops over the two last axes together, along which a shift is one by so many channels."""
    x_bxtxj, channels, sums = _joined(x), x.shape[-1], at_least_float32(x.dtype)
    padded, places = _padded(x_bxtxj, kernel), _places(kernel)
    weights = jnp.tile(kernel.reshape(-1, channels).astype(sums), x_bxtxj.shape[-1] // channels)

    _, frames, size = x_bxtxj.shape

    def sum_of_taps(padded, weights):
        seen = (padded[:, row : row + frames, column : column + size] for row, column in places)
        return reduce(jnp.add, map(jnp.multiply, weights, seen))

    return computed_once(sum_of_taps, padded, weights).reshape(x.shape).astype(x.dtype)


def _kernel_gradient(x, kernel, dy):
    """As many utterances at a time as stay in the cache."""
    sums, places = at_least_float32(x.dtype), _places(kernel)
    columns = [column for row, column in places if row == 0]
    x_bxtxj, dy_bxtxj = _padded(_joined(x), kernel).astype(sums), _joined(dy).astype(sums)
    b, frames, size = dy_bxtxj.shape
    most = max(1, IN_CACHE // (frames * size))
    rows = max(rows for rows in range(1, b + 1) if b % rows == 0 and rows <= most)

    def add_some(total, some):
        x_rxtxj, dy_rxtxj = some

        def of_row(row):
            seen = jax.lax.dynamic_slice(x_rxtxj, (0, row, 0), (rows, frames, x_rxtxj.shape[2]))
            return jnp.stack([_sum_of_product(seen[..., c : c + size], dy_rxtxj) for c in columns])

        of_rows = jax.lax.map(of_row, jnp.arange(len(kernel)))
        return total + of_rows.reshape(total.shape), None

    some = [array.reshape(b // rows, rows, *array.shape[1:]) for array in (x_bxtxj, dy_bxtxj)]
    total, _ = jax.lax.scan(add_some, jnp.zeros((len(places), size), sums), some)
    gradient = total.reshape(len(places), -1, x.shape[-1]).sum(1)
    return gradient.reshape(kernel.shape).astype(kernel.dtype)


def _sum_of_product(x: Float[Array, "r t j"], y: Float[Array, "r t j"]) -> Float[Array, " j"]:
    """Sum of x * y over rows and frames: stretches of frames upon one another, in one loop that
    writes no product, then what came of them, and the frames that are left."""
    frames = x.shape[1]
    length = frames // STRETCHES

    def stretch(start, stop):
        return x[:, start:stop] * y[:, start:stop]

    total = sum_of_all(stretch(STRETCHES * length, frames))
    if length:
        stretches = (stretch(i * length, (i + 1) * length) for i in range(STRETCHES))
        total += sum_of_all(reduce(jnp.add, stretches))
    return total


def _joined(x: Float[Array, "b *n c"]) -> Float[Array, "b t j"]:
    return x.reshape(*x.shape[:2], -1)


def _padded(x_bxtxj: Array, kernel: Array) -> Array:
    """With as many zeros as the taps of the kernel see beyond the map."""
    last_row, last = _places(kernel)[-1]
    return jnp.pad(x_bxtxj, ((0, 0), (last_row // 2,) * 2, (last // 2,) * 2))


def _places(kernel: Array) -> list[tuple[int, int]]:
    """Where in the padded map each tap begins to see."""
    rows, channels = len(kernel), kernel.shape[-1]
    columns = kernel.size // (rows * channels)
    return [(row, column * channels) for row in range(rows) for column in range(columns)]
