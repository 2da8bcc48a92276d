"""Layers that the encoders share. Arrays are (b, t, c): time before channels.

Parameters are float32. A layer computes and answers in the type of its input: of bfloat16, it
convolves in bfloat16; statistics, and sums over frames, are float32 at least.

`frames_b` says how many frames of each row are the utterance's, where rows are padded to one
length; the outputs of these frames are those that the utterance has alone, and what stands in the
frames after them is ignored. None: all frames of all rows.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from chns_jax.encoders.batch_norm import BatchNorm
from chns_jax.encoders.sums import (
    add_bias,
    at_least_float32,
    matmul,
    mean_of_each,
    sum_of_each,
)

FEWEST_DRAWS = 1024


def torch_uniform(key, shape, dtype=jnp.float32):
    """PyTorch's default weight of a layer (..., c_in, c_out): uniform in +-1/sqrt(fan_in)."""
    return _uniform(key, shape, max(1, math.prod(shape[:-1])) ** -0.5, dtype)


def torch_bias(inputs: int):
    """An initializer of PyTorch's default bias of a layer of so many inputs, as its weight's."""
    return lambda key, shape: _uniform(key, shape, inputs**-0.5, jnp.float32)


def _uniform(key, shape, bound: float, dtype):
    """`jax.random.uniform` in +-bound, of one of a few sizes, each of which JAX compiles once; its
    first draws are the same however many are drawn."""
    count = math.prod(shape)
    size = FEWEST_DRAWS
    while size < count:
        size *= 4
    drawn = jax.random.uniform(key, (size,), dtype, -bound, bound)
    return drawn[:count].reshape(shape)


def rematerialised(block: type[nn.Module]) -> type[nn.Module]:
    """The module `block(x, train, ...)`, whose activations are made again for the gradient."""
    return nn.remat(block, static_argnums=(2,))  # train; the module itself is 0


def valid(frames_b: Int[Array, " b"] | None, frames: Any) -> Bool[Array, "b t 1"] | None:
    """Which of `frames` frames are the utterance's: the `where` of a mean, maximum or softmax.

    `frames` is a number, or a symbolic dimension where an encoder is exported.
    """
    if frames_b is None:
        return None
    return (jnp.arange(frames) < frames_b[:, None])[..., None]


def zero_outside(
    where: Bool[Array, "*#b 1"] | None, x: Float[Array, "*b c"]
) -> Float[Array, "*b c"]:
    """`x` with zeros where `where` says that the utterance is not."""
    return x if where is None else jnp.where(where, x, 0)


def pad_reflect(
    x: Float[Array, "b t c"], left: int, right: int, frames_b: Int[Array, " b"] | None = None
) -> Float[Array, "b t2 c"]:
    """Frames mirrored at an utterance's first and last, as many as `left` and `right` say."""
    if frames_b is None:
        return _mirrored(x, left, right)
    past = frames_b[:, None] + jnp.arange(right)
    mirrored = jnp.take_along_axis(x, (2 * frames_b[:, None] - 2 - past)[..., None], axis=1)
    x = jnp.pad(_mirrored(x, left, 0), ((0, 0), (0, right), (0, 0)))
    frame = jnp.arange(x.shape[1]) - left
    for i in range(right):  # selections are fused with what follows; a scatter is not
        x = jnp.where((frame == past[:, i, None])[..., None], mirrored[:, i, None], x)
    return x


def _mirrored(x: Float[Array, "b t c"], left: int, right: int) -> Float[Array, "b t2 c"]:
    """As NumPy's pad of mode "reflect", also of a symbolic length, which JAX's refuses."""
    last = x.shape[1] - 1
    before = jax.lax.slice_in_dim(x, 1, left + 1, axis=1)
    after = jax.lax.slice_in_dim(x, last - right, last, axis=1)
    return jnp.concatenate([jax.lax.rev(before, (1,)), x, jax.lax.rev(after, (1,))], axis=1)


class Conv1d(nn.Module):
    """Same-length 1-D convolution with reflect padding, as SpeechBrain's `Conv1d(padding="same")`.

    A kernel of k taps is k shifted matrix products, which XLA runs at the speed of a plain matrix
    product on every backend. Kernel (k, c_in, c_out). Raises ValueError when the input has too
    few frames to reflect.
    """

    channels: int
    kernel_size: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        frames_b: Int[Array, " b"] | None = None,
        constant: Float[Array, "b 1 e"] | None = None,
    ) -> Float[Array, "b t d"]:
        """`constant` are further channels, the same in every frame; only for kernels of one tap."""
        taps, inputs = self.kernel_size, x.shape[-1]
        if constant is not None:
            inputs += constant.shape[-1]
        kernel = self.param("kernel", torch_uniform, (taps, inputs, self.channels))
        bias = self.param("bias", torch_bias(taps * inputs), (self.channels,))
        if constant is not None:
            here, everywhere = jnp.split(kernel[0], [x.shape[-1]])
            return _convolved(x, here, _convolved(constant, everywhere, bias))
        if taps == 1:
            return _convolved(x, kernel[0], bias)
        reach = self.dilation * (taps - 1)
        frames = x.shape[1]
        if frames <= (reach + 1) // 2:
            raise ValueError(f"{frames} frames are too few for a convolution that reaches {reach}")
        padded = pad_reflect(x, reach // 2, reach - reach // 2, frames_b)
        shifted = [padded[:, i * self.dilation : i * self.dilation + frames] for i in range(taps)]
        return _convolved(jnp.concatenate(shifted, -1), kernel.reshape(-1, self.channels), bias)


def _convolved(x, kernel, bias):
    return add_bias(matmul(x, kernel.astype(x.dtype)), bias)


class TDNN(nn.Module):
    """Convolution over time, ReLU, batch normalisation, in this order."""

    channels: int
    kernel_size: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
        constant: Float[Array, "b 1 e"] | None = None,
    ) -> Float[Array, "b t d"]:
        """`constant` as of Conv1d, `counted_b` as of BatchNorm."""
        conv = Conv1d(self.channels, self.kernel_size, self.dilation, name="conv")
        x = conv(x, frames_b, constant)
        return BatchNorm(name="norm")(nn.relu(x), train, counted_b)


class SqueezeExcitation(nn.Module):
    """Gates each channel by a bottleneck of its mean over time (Hu et al. 2018)."""

    bottleneck: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], frames_b: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t c"]:
        where = valid(frames_b, x.shape[1])
        squeezed = mean_of_each(x, where)[:, None]
        hidden = nn.relu(Conv1d(self.bottleneck, name="conv1")(squeezed))
        gate = nn.sigmoid(Conv1d(x.shape[-1], name="conv2")(hidden))
        return (x * gate).astype(x.dtype)


class AttentiveStatistics(nn.Module):
    """Attentive statistics pooling with global context (Okabe 2018; Desplanques 2020).

    Every channel has its own attention over *time*; the result is its weighted mean and deviation,
    in float32 at least.
    """

    attention_channels: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 2*c"]:
        dtype, x = x.dtype, x.astype(at_least_float32(x.dtype))
        where = valid(frames_b, x.shape[1])
        mean = mean_of_each(x, where)[:, None]
        variance = mean_of_each(jnp.square(x - mean), where)[:, None]
        deviation = jnp.sqrt(jnp.maximum(variance, 1e-12))
        context = jnp.concatenate([mean, deviation], axis=-1).astype(dtype)
        tdnn = TDNN(self.attention_channels, name="tdnn")
        hidden = tdnn(x.astype(dtype), train, counted_b=counted_b, constant=context)
        score = Conv1d(x.shape[-1], name="conv")(jnp.tanh(hidden))
        weight = jax.nn.softmax(score.astype(x.dtype), axis=1, where=where)
        mean = sum_of_each(weight * x)
        variance = sum_of_each(weight * jnp.square(x - mean[:, None]))
        deviation = jnp.sqrt(jnp.maximum(variance, 1e-12))
        return jnp.concatenate([mean, deviation], axis=-1)
