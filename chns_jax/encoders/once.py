"""What a CPU computes once for all that read it.

XLA's CPU backend puts cheap operations into each loop that reads what they make, so that a sum of
nine maps is computed in as many loops as read it. A call that it may not take apart stands between.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float


def computed_once(function: Callable[..., Array], *arrays: Array) -> Array:
    """function(*arrays), in memory; to be called where only a CPU computes it."""

    def inner(*arrays):
        with set_xla_metadata(inlineable=None):  # calls within it may be taken apart
            return function(*arrays)

    with set_xla_metadata(inlineable="false"):
        return jax.jit(inner)(*arrays)


def read_often(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`x`; on CPUs it is computed once, and so is its gradient."""
    if any(map(is_symbolic_dim, x.shape)):  # of any length: for programs that are not JAX's
        return x
    return _read_often(x)


@jax.custom_vjp
def _read_often(x):
    return jax.lax.platform_dependent(
        x, cpu=lambda x: computed_once(lambda x: x, x), default=lambda x: x
    )


_read_often.defvjp(lambda x: (_read_often(x), None), lambda _, dy: (_read_often(dy),))
