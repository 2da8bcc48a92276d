import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chns_jax.encoders.convolution import convolve, weight_gradient


def plain(x, kernel, strides, padding):
    """The convolution, one pixel at a time."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    size = np.array(kernel.shape[:2])
    rows, columns = (np.array(padded.shape[1:3]) - size) // strides + 1
    y = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            h, w = row * strides[0], column * strides[1]
            y[:, row, column] = np.tensordot(padded[:, h : h + size[0], w : w + size[1]], kernel, 3)
    return y


CASES = {
    "3x3": ((3, 3), (1, 1), ((1, 1), (1, 1))),
    "3x3 strided": ((3, 3), (2, 2), ((1, 1), (1, 1))),
    "7x7 strided one way": ((7, 7), (2, 1), ((3, 3), (3, 3))),
    "1x1 strided": ((1, 1), (2, 2), ((0, 0), (0, 0))),
    "oblong": ((2, 3), (1, 3), ((0, 1), (2, 0))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("image", [(8, 9), (7, 6)])
def test_value_and_gradients_are_the_plain_sum(case, image):
    size, strides, padding = case
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, *image, 2)), rng.normal(size=(*size, 2, 4))
    expected = plain(x, kernel, strides, padding)
    dy = rng.normal(size=expected.shape)
    y, back = jax.vjp(
        lambda x, kernel: convolve(x, kernel, strides, list(padding)),
        *(jnp.asarray(a, jnp.float32) for a in (x, kernel)),
    )
    dx, dkernel = back(jnp.asarray(dy, jnp.float32))
    np.testing.assert_allclose(y, expected, atol=1e-4)
    # Linear in each argument: the gradient's product with a direction is dy's with the result's.
    for _ in range(3):
        other, tap = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        moved = (dy * plain(other, kernel, strides, padding)).sum()
        np.testing.assert_allclose((np.asarray(dx) * other).sum(), moved, atol=1e-3)
        moved = (dy * plain(x, tap, strides, padding)).sum()
        np.testing.assert_allclose((np.asarray(dkernel) * tap).sum(), moved, atol=1e-3)


def test_the_weight_gradient_of_bfloat16_is_summed_in_float32():
    x, dy = (jnp.ones((8, 16, 16, 1), jnp.bfloat16) for _ in range(2))
    gradient = weight_gradient(x, dy, (3, 3, 1, 1), (1, 1), ((1, 1), (1, 1)))
    assert gradient.dtype == jnp.float32
    assert gradient[1, 1, 0, 0] == 8 * 16 * 16  # bfloat16 has no number that is near enough
    assert gradient[0, 0, 0, 0] == 8 * 15 * 15
