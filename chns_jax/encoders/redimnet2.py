"""ReDimNet2 (Yakovlev & Okhotnikov 2026), wired as in wespeaker and in its authors' code.

A map is (b, t, f * c), 1-D, or the same numbers as (b, t, f, c), 2-D: a stage that divides f
multiplies c, so that all maps have one size, and a stage may weigh all that were made before it.
Stages also divide t by more and more; what they make is repeated to the length of the input, whose
frames are cut to a multiple of the last stage's step.

Where rows are padded to one length, `frames_b` says how many frames of a map are the utterance's.
The others are set to zero before each convolution over time, which pads with zeros, and are counted
by no mean and no attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Int

from chns_jax.encoders.batch_norm import BatchNorm
from chns_jax.encoders.layers import (
    Conv1d,
    rematerialised,
    torch_bias,
    torch_uniform,
    valid,
    zero_outside,
)
from chns_jax.encoders.sums import add_bias, at_least_float32, matmul, mean_of_each, sum_of_each

CONTEXT_TAPS = (7, 19, 31, 59)  # of a time-context block's convolutions
HEADS = 4  # of its attention
POOLING_CHANNELS = 128  # of the bottleneck of the attentive pooling
LAYER_EPSILON = 1e-6  # of layer normalisations, and of the batch normalisation that ends a stage
GROUP_EPSILON = 1e-5
LEAST_VARIANCE = 1e-7
QUERIES_AT_ONCE = 1024  # so that attention over a minute does not fill the memory


class Conv(nn.Module):
    """Convolution over as many axes as `size` has, padded with zeros to the input's length.

    Kernel (*size, c_in / groups, c_out). A convolution with strides has none of them overlap.
    """

    channels: int
    size: tuple[int, ...] = ()
    strides: tuple[int, ...] | None = None
    groups: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *m d"]:
        shape = (*self.size, x.shape[-1] // self.groups, self.channels)
        kernel = jnp.asarray(self.param("kernel", torch_uniform, shape), x.dtype)
        if math.prod(self.size) == self.groups == 1:
            y = matmul(x, kernel.reshape(shape[-2:]))
        else:
            axes = "THW"[: len(self.size)]
            y = jax.lax.conv_general_dilated(
                x, kernel, self.strides or (1,) * len(axes), "SAME",
                dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
                feature_group_count=self.groups,
            )  # fmt: skip
        if not self.bias:
            return y
        bias = self.param("bias", torch_bias(math.prod(shape[:-1])), (self.channels,))
        return add_bias(y, bias)


class ResidualBlock(nn.Module):
    """Twice a 3 x 3 convolution of each channel and a 1 x 1 one, around them a residual."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t f c"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b t f c"]:
        channels, residual = x.shape[-1], x
        for i in (1, 2):
            x = _zero_outside(frames_b, x)
            x = Conv(channels, (3, 3), groups=channels, bias=False, name=f"conv{i}")(x)
            x = Conv(channels, (1, 1), name=f"conv{i}pw")(x)
            x = nn.relu(x) if i == 1 else x
            x = BatchNorm(name=f"bn{i}")(x, train, counted_b)
        return nn.relu(x + residual)


class Attention(nn.Module):
    """Transformer layer over time whose normalisations follow its sums; no positions."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], frames_b: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t c"]:
        channels = x.shape[-1]
        heads = (*x.shape[:2], HEADS, channels // HEADS)
        query, key, value = (
            Conv(channels, name=name)(x).reshape(heads) for name in ("q_proj", "k_proj", "v_proj")
        )
        attended = attend(query, key, value, frames_b).reshape(x.shape)
        x = _layer_norm(x.dtype, "layer_norm")(x + Conv(channels, name="out_proj")(attended))
        hidden = nn.gelu(Conv(channels, name="intermediate_dense")(x), approximate=True)
        x = x + Conv(channels, name="output_dense")(hidden)
        return _layer_norm(x.dtype, "final_layer_norm")(x)


class TimeContext(nn.Module):
    """Fewer channels, convolutions of growing length, attention, and back, around them a residual.

    A convolution is one of each channel: batch normalisation, GELU and a product follow it, and
    what it was given is added.
    """

    hidden: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b t c"]:
        hidden = Conv(self.hidden, (1,), name="reduce")(x)
        hidden = _layer_norm(x.dtype, "reduce_norm")(hidden)
        for i, taps in enumerate(CONTEXT_TAPS):
            depthwise = Conv(self.hidden, (taps,), groups=self.hidden, name=f"depthwise_{i}")
            context = depthwise(_zero_outside(frames_b, hidden))
            context = BatchNorm(name=f"norm_{i}")(context, train, counted_b)
            context = nn.gelu(context, approximate=False)
            hidden = hidden + Conv(self.hidden, (1,), name=f"pointwise_{i}")(context)
        hidden = Attention(name="attention")(hidden, frames_b)
        return x + Conv(x.shape[-1], (1,), name="expand")(hidden)


class GroupNorm(nn.Module):
    """Normalisation of an utterance's groups of neighbouring channels, over the frames too."""

    groups: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], frames_b: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t c"]:
        channels, where = x.shape[-1], valid(frames_b, x.shape[1])
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def mean(x):
            of_groups = mean_of_each(x, where).reshape(-1, self.groups, channels // self.groups)
            return jnp.repeat(of_groups.mean(-1), channels // self.groups, axis=-1)[:, None]

        centred = x.astype(at_least_float32(x.dtype))
        centred = centred - mean(centred)
        gain = scale * jax.lax.rsqrt(mean(jnp.square(centred)) + GROUP_EPSILON)
        return (centred * gain + bias).astype(x.dtype)


class WeightedSum(nn.Module):
    """Sum of maps, of which each channel has a weight; those of a channel sum to one."""

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b t c"]]) -> Float[Array, "b t c"]:
        shape = (1, len(maps), maps[0].shape[-1], 1)  # PyTorch's
        weight_nxc = jax.nn.softmax(self.param("w", nn.initializers.zeros, shape)[0, :, :, 0], 0)
        total = sum(weight * x for weight, x in zip(weight_nxc, maps, strict=True))
        return jnp.asarray(total, maps[0].dtype)


class Stage(nn.Module):
    """All maps before it -> the next one."""

    channels: int  # of a pixel of what it makes
    frequency_stride: int
    time_step: int  # frames of the input that one of its frames stands for
    blocks: int
    expansion: float
    hidden: int
    group_norm: int
    remat: bool

    @nn.compact
    def __call__(
        self,
        maps: Sequence[Float[Array, "b t c"]],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b t c"]:
        x, step = WeightedSum(name="weights")(maps), self.time_step
        inputs = self.channels // self.frequency_stride
        wide = int(self.channels * self.expansion + 1e-6)  # a ratio may be rounded down
        size = (step, self.frequency_stride)
        conv = Conv(wide, size, size, math.gcd(inputs, wide), name="downsample")
        x = conv(x.reshape(*x.shape[:2], -1, inputs))
        frames_b = None if frames_b is None else frames_b // step
        remat = rematerialised if self.remat else lambda block: block
        for i in range(self.blocks):
            x = remat(ResidualBlock)(name=f"blocks_{i}")(x, train, frames_b, counted_b)
        if self.expansion != 1:
            x = Conv(self.channels, (1, 1), name="narrow")(x)
            x = BatchNorm(LAYER_EPSILON, name="narrow_norm")(x, train, counted_b)
        x = x.reshape(*x.shape[:2], -1)
        context = remat(TimeContext)(self.hidden, name="context")
        x = jnp.repeat(context(x, train, frames_b, counted_b), step, axis=1)
        if self.group_norm:
            frames_b = None if frames_b is None else frames_b * step
            x = GroupNorm(self.group_norm, name="group_norm")(x, frames_b)
        return x


class AttentivePooling(nn.Module):
    """Attentive statistics pooling with global context, as wespeaker's `ASTP`.

    Unlike SpeechBrain's (`layers.AttentiveStatistics`) it has no batch normalisation, and the
    context's variance is the unbiased one.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], frames_b: Int[Array, " b"] | None = None
    ) -> Float[Array, "b 2*c"]:
        dtype, x = x.dtype, x.astype(at_least_float32(x.dtype))
        where = valid(frames_b, x.shape[1])
        frames = x.shape[1] if frames_b is None else frames_b[:, None, None]
        mean = mean_of_each(x, where)[:, None]
        variance = mean_of_each(jnp.square(x - mean), where)[:, None] * (frames / (frames - 1))
        context = jnp.concatenate([mean, jnp.sqrt(variance + LEAST_VARIANCE)], axis=-1)
        hidden = Conv1d(POOLING_CHANNELS, name="linear1")(
            x.astype(dtype), constant=context.astype(dtype)
        )
        score = Conv1d(x.shape[-1], name="linear2")(jnp.tanh(hidden)).astype(x.dtype)
        weight = jax.nn.softmax(score, axis=1, where=where)
        mean = sum_of_each(weight * x)
        variance = sum_of_each(weight * jnp.square(x - mean[:, None]))
        deviation = jnp.sqrt(jnp.maximum(variance, LEAST_VARIANCE))
        return jnp.concatenate([mean, deviation], axis=-1)


class ReDimNet2(nn.Module):
    """Log-mel -> speaker embedding. Defaults: its paper's B1, 2,161,488 parameters.

    A pixel of the first map has `channels`; the other options have an entry for each stage, as
    `config.ReDimNet2` explains. Convolutions compute in `dtype`. With `remat`, a block's
    activations are made again for its gradient, not kept. In evaluation mode, rows may be padded:
    `frames_b` are then the frames of each utterance, no fewer than `fewest_frames`, and an
    embedding is that of the utterance alone. `counted_b` as of BatchNorm.
    """

    channels: int = 16
    frequency_strides: tuple[int, ...] = (1, 2, 1, 2, 1, 2)
    time_strides: tuple[int, ...] = (1, 1, 2, 1, 2, 1)
    blocks: tuple[int, ...] = (2, 3, 4, 5, 4, 3)
    expansions: tuple[float, ...] = (2, 1, 1, 1, 1, 1)
    reductions: tuple[int, ...] = (32, 32, 32, 32, 16, 16)
    head: str = "2d"
    head_channels: int | None = None
    group_norm: int = 0
    embedding: int = 192
    dtype: str = "float32"
    remat: bool = False

    @property
    def fewest_frames(self) -> int:
        """Frames that an utterance needs for a frame of the last stage, and for a variance."""
        return max(2, math.prod(self.time_strides))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t f"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        step, size = math.prod(self.time_strides), x.shape[-1] * self.channels
        x = x[:, : x.shape[1] // step * step, :, None].astype(self.dtype)
        frames_b = None if frames_b is None else frames_b // step * step
        x = Conv(self.channels, (3, 3), name="stem")(_zero_outside(frames_b, x))
        x = _layer_norm(x.dtype, "stem_norm")(x).reshape(*x.shape[:2], size)
        if self.group_norm:
            x = GroupNorm(self.group_norm, name="stem_group_norm")(x, frames_b)
        maps, channels, step = [x], self.channels, 1
        for i, (over_frequency, over_time, blocks, expansion, reduction) in enumerate(
            zip(
                self.frequency_strides, self.time_strides, self.blocks, self.expansions,
                self.reductions, strict=True,
            )
        ):  # fmt: skip
            channels, step = channels * over_frequency, step * over_time
            stage = Stage(
                channels, over_frequency, step, blocks, expansion, size // reduction,
                self.group_norm, self.remat, name=f"stage{i}",
            )  # fmt: skip
            maps.append(stage(maps, train, frames_b, counted_b))
        x = WeightedSum(name="fin_wght1d")(maps)
        if self.head == "2d":
            x = x.reshape(*x.shape[:2], -1, channels)
        if self.head_channels is not None:
            x = Conv(self.head_channels, (1,) * (x.ndim - 2), name="head")(x)
        if self.head == "2d":  # the pooling's channels are those of a pixel, and in each the bands
            x = x.swapaxes(2, 3).reshape(*x.shape[:2], -1)
        pooled = AttentivePooling(name="pool")(x, frames_b)
        return Conv(self.embedding, name="linear")(BatchNorm(name="bn")(pooled, train, counted_b))


def attend(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b t h c"],
    value: Float[Array, "b t h c"],
    frames_b: Int[Array, " b"] | None,
) -> Float[Array, "b t h c"]:
    """Each frame's values, weighed by the softmax of its query's products with all keys."""
    where = valid(frames_b, key.shape[1])
    where = None if where is None else where[:, None].swapaxes(2, 3)

    def of(query):
        logits = jnp.einsum("bqhc,bkhc->bhqk", query * query.shape[-1] ** -0.5, key)
        weight = jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)), where=where)
        return jnp.einsum("bhqk,bkhc->bqhc", weight.astype(value.dtype), value)

    frames = query.shape[1]
    if is_symbolic_dim(frames) or frames <= QUERIES_AT_ONCE:
        return of(query)
    blocks = -(-frames // QUERIES_AT_ONCE)
    padded = jnp.pad(query, ((0, 0), (0, blocks * QUERIES_AT_ONCE - frames), (0, 0), (0, 0)))
    stacked = padded.reshape(len(query), blocks, QUERIES_AT_ONCE, *query.shape[2:])
    attended = jax.lax.map(of, stacked.swapaxes(0, 1))
    return attended.swapaxes(0, 1).reshape(padded.shape)[:, :frames]


def _zero_outside(frames_b: Array | None, x: Float[Array, "b t *c"]) -> Float[Array, "b t *c"]:
    where = valid(frames_b, x.shape[1])
    if where is not None:
        where = where.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
    return zero_outside(where, x)


def _layer_norm(dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(LAYER_EPSILON, dtype=dtype, use_fast_variance=False, name=name)
