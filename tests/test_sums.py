import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.encoders import sums

SHAPES = [(3, 4), (3, 301, 5), (2, 40, 75, 3)]


def some(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_float64(shape):
    x, between = some(shape), tuple(range(1, len(shape) - 1))
    expected = x.astype(np.float64).sum(between)
    np.testing.assert_allclose(sums.sum_of_each(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        sums.sum_of_all(jnp.asarray(x)), expected.sum(0), rtol=1e-5, atol=1e-4
    )


def test_many_small_values_are_not_lost_beside_large_ones():
    """As where a ReLU leaves few of a channel, which batch normalisation then makes large."""
    x = np.full((4, 4608, 24), 6.6e-7, np.float32)
    x[:, ::60] = np.random.default_rng(0).exponential(4e-3, (4, 77, 24))
    expected = x.astype(np.float64).sum(1)
    np.testing.assert_allclose(sums.sum_of_each(jnp.asarray(x)), expected, rtol=3e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_plain_sums(shape):
    x, between = some(shape), tuple(range(1, len(shape) - 1))

    def gradient(sum_of_each):
        return jax.grad(lambda x: jnp.sin(sum_of_each(jnp.square(x)) / x.size).sum())(x)

    mine, plain = gradient(sums.sum_of_each), gradient(lambda x: x.sum(between))
    np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-9)


def test_bfloat16_is_summed_in_float32():
    x = jnp.full((1, 4096, 2), 1, jnp.bfloat16)  # of which bfloat16 counts 256
    assert sums.sum_of_each(x).dtype == jnp.float32
    np.testing.assert_array_equal(sums.sum_of_each(x), 4096)
    dbias = jax.grad(lambda bias: sums.add_bias(x, bias).sum(dtype=jnp.float32))(jnp.zeros(2))
    np.testing.assert_array_equal(dbias, 4096)


def test_mean_counts_no_padding():
    x = some((2, 7, 3))
    where = jnp.arange(7)[None, :, None] < jnp.array([7, 4])[:, None, None]
    padded = jnp.where(where, x, jnp.nan)
    expected = np.stack([x[0].mean(0), x[1, :4].mean(0)])
    np.testing.assert_allclose(sums.mean_of_each(padded, where), expected, rtol=1e-5)
    np.testing.assert_allclose(sums.mean_of_each(jnp.asarray(x)), x.mean(1), rtol=1e-5)


@pytest.mark.parametrize("bias_shape", [(3,), (2, 1, 3)])
def test_bias_and_product_have_the_gradients_of_plain_ones(bias_shape):
    x, kernel, bias = (jnp.asarray(some(shape)) for shape in ((2, 9, 4), (4, 3), bias_shape))

    def mine(x, kernel, bias):
        return jnp.tanh(sums.add_bias(sums.matmul(x, kernel), bias)).sum()

    def plain(x, kernel, bias):
        return jnp.tanh(x @ kernel + bias).sum()

    for one, other in zip(
        jax.grad(mine, (0, 1, 2))(x, kernel, bias),
        jax.grad(plain, (0, 1, 2))(x, kernel, bias),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
