"""Variables of an encoder before training."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from flax import linen as nn
from jax.interpreters.partial_eval import dce_jaxpr

from chns_jax.common.errors import UserError


def initial_variables(encoder: nn.Module, seed: int, frames: int, bands: int) -> dict[str, Any]:
    """What `encoder.init` draws for features (b, frames, bands), {"params", "batch_stats"}.

    Raises UserError where they and the optimiser's two moments exceed the machine's memory, of
    which XLA does not always say so.

    Only what is drawn is computed, and one operation after the other: one program of all draws
    takes longer to compile than a training step, and these few are shared by layers.
    """
    key, x = jax.random.key(seed), jnp.zeros((1, frames, bands))
    made = partial(encoder.init, train=False)
    closed, shapes = jax.make_jaxpr(made, return_shape=True)(key, x)
    _check_size(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)))
    every = [True] * len(closed.jaxpr.outvars)
    drawn, _ = dce_jaxpr(closed.jaxpr, every, instantiate=True)
    leaves = jax.core.eval_jaxpr(drawn, closed.consts, key, x)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _check_size(size: int) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 3 * size > memory:
        raise UserError(
            f"the encoder's parameters take {size / 1e9:.0f} GB, three times as many with the "
            f"optimiser's moments, and this machine has {memory / 1e9:.0f} GB: lower encoder.*"
        )
