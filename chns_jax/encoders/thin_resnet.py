"""ThinResNet-34 with squeeze-and-excitation (Chung et al. 2020), wired as in voxceleb_trainer.

Images are (b, height, width, c). The network halves the height twice more often than the width; the
height is then averaged away and attention runs over the width. The original lays mel bands along
the height and so attends over time; the authors of CHNS lay time along it.

Where rows are padded to one length, `where` (b, height or 1, width or 1, 1) says which pixels are
the utterance's. The others are set to zero before each convolution, which pads with zeros, and
counted by no mean. A stride keeps every second pixel, and so of `where`.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from chns_jax.encoders.batch_norm import BatchNorm
from chns_jax.encoders.convolution import convolve
from chns_jax.encoders.layers import rematerialised, torch_uniform, valid, zero_outside
from chns_jax.encoders.sums import at_least_float32, mean_of_each

SE_REDUCTION = 8
LEAST_VARIANCE = 1e-5
he_normal_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class SEBasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a squeeze-and-excitation gate, around them a residual."""

    filters: int
    stride: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        train: bool,
        where: Bool[Array, "#b #h2 #w2 1"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h2 w2 d"]:
        """`x` is zero past the utterance's end, and so is the result; `where` is the result's."""
        residual = x
        if self.stride != 1 or x.shape[-1] != self.filters:
            residual = _conv(self.filters, 1, self.stride, x.dtype, name="downsample_conv")(x)
            residual = BatchNorm(name="downsample_bn")(residual, train, counted_b)
        x = nn.relu(_conv(self.filters, 3, self.stride, x.dtype, name="conv1")(x))
        x = zero_outside(where, BatchNorm(name="bn1")(x, train, counted_b))
        x = _conv(self.filters, 3, 1, x.dtype, name="conv2")(x)
        x = BatchNorm(name="bn2")(x, train, counted_b)
        squeezed = mean_of_each(x, where)
        squeezed = nn.relu(_linear(self.filters // SE_REDUCTION, name="se1")(squeezed))
        gate = nn.sigmoid(_linear(self.filters, name="se2")(squeezed))
        gated = nn.relu(x * gate[:, None, None] + residual).astype(x.dtype)
        return zero_outside(where, gated)


class ThinResNet(nn.Module):
    """Log-mel -> speaker embedding.

    `pooling` is self-attentive ("sap", Cai et al. 2018) or attentive statistics ("asp", Okabe et
    al. 2018); `attend_over` is "time", or "frequency" as the authors of CHNS have it.
    Convolutions compute in `dtype`. With `remat`, a block's activations are made again for its
    gradient, not kept. In evaluation mode, rows may be padded: `frames_b` are then the frames of
    each utterance, and an embedding is that of the utterance alone. `counted_b` as of BatchNorm.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    filters: tuple[int, ...] = (16, 32, 64, 128)
    pooling: Literal["sap", "asp"] = "sap"
    attend_over: Literal["time", "frequency"] = "time"
    embedding: int = 192
    dtype: str = "float32"
    remat: bool = False

    @property
    def fewest_frames(self) -> int:
        """Frames that an utterance needs."""
        return 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t f"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        over_time = self.attend_over == "time"
        where = valid(frames_b, x.shape[1])
        if where is not None:
            where = where[:, None] if over_time else where[:, :, None]
        x = (x.swapaxes(1, 2) if over_time else x)[..., None].astype(self.dtype)
        x = _conv(self.filters[0], 7, (2, 1), x.dtype, name="conv1")(zero_outside(where, x))
        where = _strided(where, 2, 1)
        x = zero_outside(where, nn.relu(BatchNorm(name="bn1")(x, train, counted_b)))
        make_block = rematerialised(SEBasicBlock) if self.remat else SEBasicBlock
        for stage, (blocks, filters) in enumerate(zip(self.layers, self.filters, strict=True), 1):
            for i in range(blocks):
                stride = 2 if i == 0 and stage in (2, 3) else 1
                where = _strided(where, stride, stride)
                block = make_block(filters, stride, name=f"layer{stage}_{i}")
                x = block(x, train, where, counted_b)
        over_height = None if over_time else where
        x_bxwxc = jnp.mean(x, axis=1, dtype=at_least_float32(x.dtype), where=over_height)
        hidden = jnp.tanh(_linear(x_bxwxc.shape[-1], name="sap_linear")(x_bxwxc))
        attention = self.param("attention", nn.initializers.xavier_normal(), (hidden.shape[-1], 1))
        where = where[:, 0] if where is not None and over_time else None
        weight_bxwx1 = jax.nn.softmax(hidden @ attention, axis=1, where=where)
        pooled = (x_bxwxc * weight_bxwx1).sum(axis=1)
        if self.pooling == "asp":
            variance = (jnp.square(x_bxwxc) * weight_bxwx1).sum(axis=1) - jnp.square(pooled)
            deviation = jnp.sqrt(jnp.maximum(variance, LEAST_VARIANCE))
            pooled = jnp.concatenate([pooled, deviation], axis=-1)
        return _linear(self.embedding, name="fc")(pooled)


def _strided(where: Array | None, height: int, width: int) -> Array | None:
    return None if where is None else where[:, ::height, ::width]


def _conv(filters: int, size: int, stride: int | tuple[int, int], dtype, name: str) -> nn.Conv:
    """A convolution without bias, padded by half its size."""
    return nn.Conv(
        filters, (size, size), stride, padding=size // 2, use_bias=False,
        dtype=dtype, kernel_init=he_normal_out, conv_general_dilated=convolve, name=name,
    )  # fmt: skip


def _linear(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=torch_uniform, name=name)
