import jax
import jax.numpy as jnp
import numpy as np

from chns_jax.encoders.once import computed_once, read_often


def test_marks_change_neither_value_nor_gradient():
    x = jnp.arange(6.0).reshape(2, 3)
    y, back = jax.vjp(jax.jit(read_often), x)
    np.testing.assert_array_equal(y, x)
    (dx,) = back(2 * x)
    np.testing.assert_array_equal(dx, 2 * x)
    np.testing.assert_array_equal(jax.jit(lambda x: computed_once(jnp.add, x, x))(x), 2 * x)


def test_of_any_length_nothing_is_marked():
    """So that programs that are not JAX's need no primitive for it."""
    shape = jax.export.symbolic_shape("2, t, 3")
    assert not jax.make_jaxpr(read_often)(jax.ShapeDtypeStruct(shape, jnp.float32)).eqns
