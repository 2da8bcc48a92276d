import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.encoders import depthwise as depthwise_module
from chns_jax.encoders.depthwise import depthwise

CASES = {"1-D": ((3, 9, 5), (7,)), "short": ((2, 3, 4), (7,)), "2-D": ((3, 9, 6, 5), (3, 3)),
         "oblong": ((2, 4, 7, 3), (1, 5)), "stretches": ((2, 32, 4, 2), (3, 3)),
         "stretches and a rest": ((3, 37, 4, 2), (3, 3))}  # fmt: skip


def plain(x, kernel):
    """The sum over taps, one channel, one frame and one bin at a time."""
    margins = [(taps // 2, taps // 2) for taps in kernel.shape[:-2]]
    padded = np.pad(x, ((0, 0), *margins, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, kernel.shape[:-2], axis=tuple(range(1, x.ndim - 1))
    )
    taps = np.moveaxis(kernel[..., 0, :], -1, 0).reshape(x.shape[-1], -1)
    return (windows.reshape(*x.shape, -1) * taps).sum(-1)


@pytest.mark.parametrize("shape, size", CASES.values(), ids=CASES)
def test_value_and_gradients_are_the_plain_sum(shape, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape), rng.normal(size=(*size, 1, shape[-1]))
    dy = rng.normal(size=shape)
    given = [jnp.asarray(array, jnp.float32) for array in (x, kernel)]
    y, back = jax.vjp(jax.jit(depthwise), *given)
    np.testing.assert_allclose(y, plain(x, kernel), atol=1e-5)
    dx, dkernel = map(np.asarray, back(jnp.asarray(dy, jnp.float32)))
    # Linear in each argument: the gradient's product with a direction is dy's with the result's.
    for _ in range(3):
        other, tap = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        np.testing.assert_allclose((dx * other).sum(), (dy * plain(other, kernel)).sum(), atol=1e-4)
        np.testing.assert_allclose((dkernel * tap).sum(), (dy * plain(x, tap)).sum(), atol=1e-4)


@pytest.mark.parametrize("shape, size", CASES.values(), ids=CASES)
def test_of_all_but_cpus_too(shape, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape), rng.normal(size=(*size, 1, shape[-1]))
    given = [jnp.asarray(array, jnp.float32) for array in (x, kernel)]
    np.testing.assert_allclose(depthwise_module._plain(*given), plain(x, kernel), atol=1e-5)


def test_bfloat16_is_summed_in_float32():
    x, kernel = jnp.ones((8, 600, 1), jnp.bfloat16), jnp.ones((1, 1, 1))
    dkernel = jax.vjp(depthwise, x, kernel)[1](x)[1]
    assert dkernel.dtype == jnp.float32
    assert dkernel.item() == 8 * 600  # bfloat16 has no number that is near enough
    taps = jnp.full((59, 1, 1), 1 + 2**-7, jnp.bfloat16)
    y = depthwise(x, taps)
    assert y.dtype == jnp.bfloat16
    assert y[0, 300, 0] == jnp.bfloat16(59 * (1 + 2**-7))


def test_a_cpu_sums_the_taps_once_for_all_that_read_them():
    x, kernel = jnp.ones((2, 9, 6, 5)), jnp.ones((3, 3, 1, 5))

    def read_by_three(x, kernel):
        y = depthwise(x, kernel)
        return jnp.ones(18) @ y.reshape(18, -1), jnp.ones(108) @ y.reshape(108, -1), jnp.abs(y)

    costs = jax.jit(read_by_three).lower(x, kernel).compile().cost_analysis() or {}
    once = 2 * 9 * x.size  # products and sums
    assert once <= costs["flops"] < 2 * once
