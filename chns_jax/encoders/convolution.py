"""2-D convolution whose gradients are as fast as the convolution, on CPUs too.

XLA's weight gradient of a convolution is a convolution with an image for its kernel, for which it
copies all images with the batch innermost; on a CPU, that takes longer than the convolution. There
the gradient is written as matrix products, one for each image; elsewhere it stays XLA's own.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chns_jax.encoders.sums import at_least_float32, matmul

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "p q c d"],
    strides: tuple[int, int],
    padding: list[tuple[int, int]],
    **_,
) -> Float[Array, "b h2 w2 d"]:
    """`jax.lax.conv_general_dilated` as `flax.linen.Conv` calls it, undilated and in one group."""
    if kernel.shape[:2] == (1, 1):
        kept = jax.lax.slice(x, (0,) * 4, x.shape, (1, *strides, 1))
        return matmul(kept, kernel[0, 0])
    return _convolve(tuple(strides), tuple(padding), x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(strides, padding, x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def _forward(strides, padding, x, kernel):
    return _convolve(strides, padding, x, kernel), (x, kernel)


def _backward(strides, padding, x_and_kernel, dy):
    x, kernel = x_and_kernel

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)

    (dx,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(dy)
    (dkernel,) = jax.lax.platform_dependent(
        x,
        dy,
        cpu=lambda x, dy: (
            weight_gradient(x, dy, kernel.shape, strides, padding).astype(kernel.dtype),
        ),
        default=lambda x, dy: jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(dy),
    )
    return dx, dkernel


_convolve.defvjp(_forward, _backward)


def weight_gradient(
    x: Float[Array, "b h w c"],
    dy: Float[Array, "b h2 w2 d"],
    kernel_shape: tuple[int, int, int, int],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "p q c d"]:
    """Sum over pixels of `dy` times what each tap of the kernel sees of `x`.

    Tap (p, q) sees `x` shifted down by p and right by q. The shifts by q are laid side by side, and
    so are the shifts by p, of `dy` the other way: one product of the two holds all taps. An image
    at a time, as one stays in the cache.
    """
    height, width, inputs, outputs = kernel_shape
    padded_height = x.shape[1] + sum(padding[0])
    rows, columns = dy.shape[1:3]
    row_step, column_step = strides
    sums = at_least_float32(dy.dtype)
    last_row, last_column = row_step * (rows - 1) + 1, column_step * (columns - 1) + 1

    def add_image(total, image):
        x_hxwxc, dy_hxwxd = image
        padded = jnp.pad(x_hxwxc, (*padding, (0, 0)))
        seen = [padded[:, q : q + last_column : column_step] for q in range(width)]
        zero = jnp.zeros((), dy.dtype)
        placed = [
            jax.lax.pad(
                dy_hxwxd,
                zero,
                ((p, padded_height - last_row - p, row_step - 1), (0, 0, 0), (0, 0, 0)),
            )
            for p in range(height)
        ]
        seen = jnp.concatenate(seen, axis=-1).reshape(-1, width * inputs)
        placed = jnp.concatenate(placed, axis=-1).reshape(-1, height * outputs)
        product = jnp.matmul(seen.T, placed, preferred_element_type=sums)
        return total + product, None

    total = jnp.zeros((width * inputs, height * outputs), sums)
    total, _ = jax.lax.scan(add_image, total, (x, dy))
    return total.reshape(width, inputs, height, outputs).transpose(2, 0, 1, 3)
