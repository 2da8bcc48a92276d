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
from chns_jax.encoders.convolution import convolve
from chns_jax.encoders.depthwise import depthwise
from chns_jax.encoders.layers import (
    rematerialised,
    torch_bias,
    torch_uniform,
    valid,
    zero_outside,
)
from chns_jax.encoders.once import read_often
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

    Kernel (*size, c_in / groups, c_out). Strides are as long as the kernel; where there
    are none, groups are of one channel each, or there is one.
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
        elif self.strides:
            y = _of_patches(x, kernel, self.groups)
        elif self.groups > 1:
            y = depthwise(x, kernel)
        else:
            y = convolve(x, kernel, (1, 1), [(taps // 2, taps // 2) for taps in self.size])
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
        x = _repeated(context(x, train, frames_b, counted_b), step)
        if self.group_norm:
            frames_b = None if frames_b is None else frames_b * step
            x = GroupNorm(self.group_norm, name="group_norm")(x, frames_b)
        return x


class Mixing(nn.Module):
    """Kernel (c_in, c_out) and bias (c_out,) of a convolution of one frame."""

    @nn.compact
    def __call__(self, inputs: int, outputs: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", torch_uniform, (1, inputs, outputs))
        return kernel[0], self.param("bias", torch_bias(inputs), (outputs,))


class AttentivePooling(nn.Module):
    """Attentive statistics pooling with global context, as wespeaker's `ASTP`.

    Unlike SpeechBrain's (`layers.AttentiveStatistics`) it has no batch normalisation, and the
    context's variance is the unbiased one. Of channels that are those of several bins, PyTorch's
    tensors have the bins of a channel together: a map in that order would be a copy of it, so the
    weights change theirs.
    """

    bins: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], frames_b: Int[Array, " b"] | None = None
    ) -> Float[Array, "b 2*c"]:
        dtype, x = x.dtype, x.astype(at_least_float32(x.dtype))
        where, size = valid(frames_b, x.shape[1]), x.shape[-1]
        frames = x.shape[1] if frames_b is None else frames_b[:, None, None]
        mean = mean_of_each(x, where)[:, None]
        variance = mean_of_each(jnp.square(x - mean), where)[:, None] * (frames / (frames - 1))
        deviation = jnp.sqrt(variance + LEAST_VARIANCE)
        kernel, bias = Mixing(name="linear1")(3 * size, POOLING_CHANNELS)
        here, of_mean, of_deviation = (
            self._by_bins(part).astype(dtype) for part in jnp.split(kernel, 3)
        )
        context = matmul(mean.astype(dtype), of_mean)
        context += matmul(deviation.astype(dtype), of_deviation) + bias.astype(dtype)
        hidden = add_bias(matmul(x.astype(dtype), here), context)
        kernel, bias = Mixing(name="linear2")(POOLING_CHANNELS, size)
        kernel = self._by_bins(kernel.T).T.astype(dtype)
        score = add_bias(matmul(jnp.tanh(hidden), kernel), self._by_bins(bias)).astype(x.dtype)
        weight = jax.nn.softmax(score, axis=1, where=where)
        mean = sum_of_each(weight * x)
        variance = sum_of_each(weight * jnp.square(x - mean[:, None]))
        deviation = jnp.sqrt(jnp.maximum(variance, LEAST_VARIANCE))
        pooled = jnp.concatenate([mean, deviation], axis=1)
        by_bins = pooled.reshape(-1, 2, self.bins, size // self.bins)
        return by_bins.swapaxes(2, 3).reshape(pooled.shape)

    def _by_bins(self, x: Float[Array, "c *n"]) -> Float[Array, "c *n"]:
        """In the order of a map's channels."""
        return x.reshape(-1, self.bins, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


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
        maps, channels, step = [read_often(x)], self.channels, 1
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
            maps.append(read_often(stage(maps, train, frames_b, counted_b)))
        x = WeightedSum(name="fin_wght1d")(maps)
        if self.head == "2d":
            x = x.reshape(*x.shape[:2], -1, channels)
        if self.head_channels is not None:
            x = Conv(self.head_channels, (1,) * (x.ndim - 2), name="head")(x)
        bins = x.shape[2] if self.head == "2d" else 1
        pooled = AttentivePooling(bins, name="pool")(x.reshape(*x.shape[:2], -1), frames_b)
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


def _of_patches(
    x: Float[Array, "b t f c"], kernel: Float[Array, "p q i d"], groups: int
) -> Float[Array, "b t2 f2 d"]:
    """The convolution in steps of the kernel's size, as a product for each of its frames with a
    kernel of all channels, zero between groups. XLA's own of groups takes a hundred times as long
    on a CPU."""
    (p, q, inputs, outputs), (b, t, f, channels) = kernel.shape, x.shape
    of_groups = kernel.reshape(p, q, 1, inputs, groups, outputs // groups)
    apart = jnp.eye(groups, dtype=x.dtype)[:, None, :, None]
    whole = (of_groups * apart).reshape(p, q * channels, outputs)
    patches = x.reshape(b, t // p, p, f // q, q * channels)
    y = matmul(patches[:, :, 0], whole[0])
    for frame in range(1, p):
        y += matmul(patches[:, :, frame], whole[frame])
    return y


def _repeated(x: Float[Array, "b t c"], times: int) -> Float[Array, "b t2 c"]:
    """Each frame so many times. `jnp.repeat` has a scatter for its gradient, slow on a CPU."""
    return jnp.concatenate([x[:, :, None]] * times, axis=2).reshape(x.shape[0], -1, x.shape[2])


def _zero_outside(frames_b: Array | None, x: Float[Array, "b t *c"]) -> Float[Array, "b t *c"]:
    where = valid(frames_b, x.shape[1])
    if where is not None:
        where = where.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
    return zero_outside(where, x)


def _layer_norm(dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(LAYER_EPSILON, dtype=dtype, use_fast_variance=False, name=name)
