"""Batch normalisation, and its running statistics, which move once a step.

The moments of a layer are the mean and the biased variance (c,) of a batch, and the number of
values of a channel that they are of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from chns_jax.encoders.sums import at_least_float32, sum_of_all

MOMENTUM = 0.1  # weight of the new value, PyTorch's default


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    Unlike `flax.linen.BatchNorm`, the running variance is the unbiased one and the momentum weighs
    the new value (0.1), so that statistics agree with PyTorch's after every training step. Where
    "moments" is a mutable collection, they hold the statistics of the batch, for `updated`.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *n c"], train: bool, counted_b: Float[Array, " b"] | None = None
    ) -> Float[Array, "b *n c"]:
        """Of rows that `counted_b` gives 0 for, and not 1, the statistics know nothing."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            return _scaled(x, mean_var.value, var_var.value + self.epsilon, scale, bias)
        if counted_b is None:
            y, mean, var = _normalised(self.epsilon, x, scale, bias)
            count = jnp.float32(x.size // channels)
        else:
            y, mean, var = _normalised_by_some(self.epsilon, x, scale, bias, counted_b)
            count = counted_b.sum() * (x.size // (channels * x.shape[0]))
        if self.is_initializing():
            return y
        moments = {"mean": mean, "var": var, "count": count}
        if self.is_mutable_collection("moments"):
            for name, value in moments.items():
                self.put_variable("moments", name, value)
        if self.is_mutable_collection("batch_stats"):
            before = {"mean": mean_var.value, "var": var_var.value}
            after = updated(before, moments)
            mean_var.value, var_var.value = after["mean"], after["var"]
        return y


def _scaled(x, mean, var, scale, bias):
    gain = scale * jax.lax.rsqrt(var)
    return (x * gain + (bias - mean * gain)).astype(x.dtype)


def _with_statistics(epsilon, x, scale, bias) -> tuple[Array, Array, Array]:
    """`x` (..., c) normalised over all axes but the last, and its mean and variance (c,), which
    have no gradient here.

    The gradient is written out, as it then needs nothing kept but `x`.
    """
    of, count = x.astype(at_least_float32(x.dtype)), x.size // x.shape[-1]
    mean = sum_of_all(of) / count
    var = sum_of_all(jnp.square(of - mean)) / count
    return _scaled(x, mean, var + epsilon, scale, bias), mean, var


_normalised = jax.custom_vjp(_with_statistics, nondiff_argnums=(0,))


def _normalised_forward(epsilon, x, scale, bias):
    y, mean, var = _normalised(epsilon, x, scale, bias)
    return (y, mean, var), (x, mean, var, scale)


def _normalised_backward(epsilon, kept, cotangents):
    x, mean, var, scale = kept
    count = x.size // x.shape[-1]
    return _input_gradient(epsilon, x, mean, var, scale, cotangents[0], 1 / count)


_normalised.defvjp(_normalised_forward, _normalised_backward)


def _with_some_statistics(epsilon, x, scale, bias, counted_b):
    """As `_with_statistics`, with the mean and variance of the rows that are counted."""
    of, share = x.astype(at_least_float32(x.dtype)), _share(x, counted_b)
    mean = sum_of_all(of * share)
    var = sum_of_all(jnp.square(of - mean) * share)
    return _scaled(x, mean, var + epsilon, scale, bias), mean, var


_normalised_by_some = jax.custom_vjp(_with_some_statistics, nondiff_argnums=(0,))


def _normalised_by_some_forward(epsilon, x, scale, bias, counted_b):
    y, mean, var = _normalised_by_some(epsilon, x, scale, bias, counted_b)
    return (y, mean, var), (x, mean, var, scale, counted_b)


def _normalised_by_some_backward(epsilon, kept, cotangents):
    x, mean, var, scale, counted_b = kept
    share = _share(x, counted_b)
    return *_input_gradient(epsilon, x, mean, var, scale, cotangents[0], share), None


_normalised_by_some.defvjp(_normalised_by_some_forward, _normalised_by_some_backward)


def _share(x, counted_b):
    """What each value of `x` contributes to a mean over the rows that are counted, (b, 1, ...)."""
    values = x.size // (x.shape[0] * x.shape[-1])
    share = counted_b / jnp.maximum(counted_b.sum() * values, 1)
    return share.reshape(-1, *(1,) * (x.ndim - 1))


def _input_gradient(epsilon, x, mean, var, scale, dy, share):
    """Gradients of `_scaled` by x, scale and bias, where each value has a `share` in the mean."""
    dy = dy.astype(at_least_float32(x.dtype))
    inverse = jax.lax.rsqrt(var + epsilon)
    unit = (x - mean) * inverse
    dbias, dscale = sum_of_all(dy), sum_of_all(dy * unit)
    dx = scale * inverse * (dy - dbias * share - unit * (dscale * share))
    return dx.astype(x.dtype), dscale, dbias


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


def of_each_layer(function: Callable, *trees: Any) -> Any:
    """function(layer of each tree) for every layer of trees such as batch_stats."""
    flat = [_layers(tree) for tree in trees]
    done = {path: function(*(layers[path] for layers in flat)) for path in flat[0]}
    return traverse_util.unflatten_dict(done)


def _layers(tree: Any) -> dict[tuple[str, ...], dict[str, Any]]:
    layers: dict[tuple[str, ...], dict[str, Any]] = {}
    for (*path, name), value in traverse_util.flatten_dict(tree).items():
        layers.setdefault(tuple(path), {})[name] = value
    return layers
