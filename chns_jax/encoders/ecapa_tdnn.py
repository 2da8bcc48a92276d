"""ECAPA-TDNN (Desplanques et al., Interspeech 2020), wired as in SpeechBrain."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from chns_jax.encoders.layers import (
    TDNN,
    AttentiveStatistics,
    BatchNorm,
    Conv1d,
    SqueezeExcitation,
    rematerialised,
)


class Res2Net(nn.Module):
    """Channel groups convolved one after another, each adding the one before (Gao et al. 2019)."""

    scale: int
    kernel_size: int
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], train: bool) -> Float[Array, "b t c"]:
        groups = jnp.split(x, self.scale, axis=-1)
        outputs = [groups[0]]
        for i, group in enumerate(groups[1:]):
            tdnn = TDNN(group.shape[-1], self.kernel_size, self.dilation, name=f"blocks_{i}")
            outputs.append(tdnn(group if i == 0 else group + outputs[-1], train))
        return jnp.concatenate(outputs, axis=-1)


class SERes2NetBlock(nn.Module):
    """TDNN, Res2Net, TDNN, squeeze-and-excitation, with a residual connection around them."""

    channels: int
    kernel_size: int
    dilation: int
    res2net_scale: int
    se_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], train: bool) -> Float[Array, "b t d"]:
        residual = x
        if x.shape[-1] != self.channels:
            residual = Conv1d(self.channels, name="shortcut")(x)
        x = TDNN(self.channels, name="tdnn1")(x, train)
        x = Res2Net(self.res2net_scale, self.kernel_size, self.dilation, name="res2net")(x, train)
        x = TDNN(self.channels, name="tdnn2")(x, train)
        return SqueezeExcitation(self.se_channels, name="se")(x) + residual


class EcapaTdnn(nn.Module):
    """Log-mel -> speaker embedding. Defaults: the paper's mobile model, 2,049,952 parameters.

    `channels`, `kernel_sizes` and `dilations` have one entry for the first TDNN, one for each
    SE-Res2Net block and one for the aggregation of the blocks' outputs. Convolutions compute in
    `dtype`. With `remat`, a block's activations are made again for its gradient, not kept.
    """

    channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    res2net_scale: int = 8
    se_channels: int = 128
    attention_channels: int = 128
    embedding: int = 192
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t f"], train: bool) -> Float[Array, "b d"]:
        first, *blocks, last = zip(self.channels, self.kernel_sizes, self.dilations, strict=True)
        x = TDNN(*first, name="blocks_0")(x.astype(self.dtype), train)
        outputs = []
        make_block = rematerialised(SERes2NetBlock) if self.remat else SERes2NetBlock
        for i, layer in enumerate(blocks, start=1):
            block = make_block(*layer, self.res2net_scale, self.se_channels, name=f"blocks_{i}")
            x = block(x, train)
            outputs.append(x)
        x = TDNN(*last, name="mfa")(jnp.concatenate(outputs, axis=-1), train)
        x = AttentiveStatistics(self.attention_channels, name="asp")(x, train)
        x = BatchNorm(name="asp_bn")(x, train)
        return Conv1d(self.embedding, name="fc")(x[:, None])[:, 0]
