"""Running statistics of batch normalisation: moved once a step, by the moments of its batch.

The moments of a layer are the mean and the biased variance (c,) of a batch, and the number of
values of a channel that they are of.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

MOMENTUM = 0.1  # weight of the new value, PyTorch's default


def updated(before: dict[str, jax.Array], moments: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A layer's running mean and unbiased variance after a batch, as of PyTorch's BatchNorm."""
    count = moments["count"]
    unbiased = moments["var"] * (count / jnp.maximum(count - 1, 1))
    return {
        "mean": before["mean"] + MOMENTUM * (moments["mean"] - before["mean"]),
        "var": before["var"] + MOMENTUM * (unbiased - before["var"]),
    }


def merged(moments: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A layer's moments of all micro-batches together, from those of each, stacked (n, ...).

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
    """
    count = moments["count"]
    share = (count / count.sum())[:, None]
    mean = (share * moments["mean"]).sum(0)
    var = (share * (moments["var"] + jnp.square(moments["mean"] - mean))).sum(0)
    return {"mean": mean, "var": var, "count": count.sum()}


def of_each_layer(function, *trees: Any) -> Any:
    """function(layer of each tree) for every layer of trees such as batch_stats."""
    flat = [_layers(tree) for tree in trees]
    done = {path: function(*(layers[path] for layers in flat)) for path in flat[0]}
    return traverse_util.unflatten_dict(done)


def _layers(tree: Any) -> dict[tuple[str, ...], dict[str, jax.Array]]:
    layers: dict[tuple[str, ...], dict[str, jax.Array]] = {}
    for (*path, name), value in traverse_util.flatten_dict(tree).items():
        layers.setdefault(tuple(path), {})[name] = value
    return layers
