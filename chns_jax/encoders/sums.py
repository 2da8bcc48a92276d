"""Sums over frames or pixels, and what has such sums for its gradient, as fast as a CPU allows.

XLA sums on a CPU window by window, which takes five to forty times as long as a matrix product with
ones. There the sums are such products, elsewhere XLA's own.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Bool, Float


def at_least_float32(dtype) -> jnp.dtype:
    """The type in which values of type `dtype` are summed."""
    return jnp.promote_types(dtype, jnp.float32)


def sum_of_each(x: Float[Array, "b *n c"]) -> Float[Array, "b c"]:
    """Sum over all axes but the first and the last, in float32 at least."""
    return _sum_of_each(x.shape, x.astype(at_least_float32(x.dtype)))


def mean_of_each(
    x: Float[Array, "b *n c"], where: Bool[Array, "b *#n 1"] | None = None
) -> Float[Array, "b c"]:
    """Mean over all axes but the first and the last, of the places that `where` says."""
    if where is None:
        return sum_of_each(x) / (x.size // (x.shape[0] * x.shape[-1]))
    between = tuple(range(1, x.ndim - 1))
    counted = jnp.broadcast_to(where, (*x.shape[:-1], 1)).sum(between)
    return sum_of_each(jnp.where(where, x, 0)) / counted


def sum_of_all(x: Float[Array, "b *n c"]) -> Float[Array, " c"]:
    """Sum over all axes but the last, in float32 at least."""
    return sum_of_each(x).sum(0)


def matmul(x: Float[Array, "*b c"], kernel: Float[Array, "c d"]) -> Float[Array, "*b d"]:
    """`x @ kernel`. Of two axes, XLA sums for the kernel's gradient as fast as for the product."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


IN_ONE_PART = 1024  # values that a product sums well, and sooner than in parts


@jax.custom_vjp
def add_bias(
    x: Float[Array, "b *n c"], bias: Float[Array, " c"] | Float[Array, "b 1 c"]
) -> Float[Array, "b *n c"]:
    """`x` with a bias, in the type of `x`; the bias's gradient is summed in float32 at least."""
    return (x + bias).astype(x.dtype)


def _add_bias_backward(bias, dy):
    dbias = sum_of_all(dy) if bias.ndim == 1 else sum_of_each(dy)[:, None]
    return dy, dbias.astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_each(shape, x):
    x_bxnxc = x.reshape(shape[0], -1, shape[-1])
    if is_symbolic_dim(x_bxnxc.shape[1]):  # of any length: its parts cannot be counted
        return x_bxnxc.sum(1)
    return jax.lax.platform_dependent(x_bxnxc, cpu=_product_with_ones, default=lambda x: x.sum(1))


def _forward(shape, x):
    return _sum_of_each(shape, x), None


def _backward(shape, _, dy):
    ones = (1,) * (len(shape) - 2)
    return (jnp.broadcast_to(dy.reshape(shape[0], *ones, shape[-1]), shape),)


_sum_of_each.defvjp(_forward, _backward)


def _product_with_ones(x: Float[Array, "b n c"]) -> Float[Array, "b c"]:
    """Sum over the second axis, of many values in as many parts as there are values in each, if n
    allows.

    Such products add one value after another, so that of 20,000 small ones a share of 3e-4 is lost.
    """
    rows, n, channels = x.shape
    parts = 1
    if n > IN_ONE_PART:
        parts = max(parts for parts in range(1, math.isqrt(n) + 1) if n % parts == 0)
    x = x.reshape(rows, n // parts, parts * channels)
    sums = jnp.einsum("bn,bnc->bc", jnp.ones(x.shape[:2], x.dtype), x)
    return sums.reshape(rows, parts, channels).sum(1)
