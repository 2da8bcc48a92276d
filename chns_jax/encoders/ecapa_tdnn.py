"""ECAPA-TDNN (Desplanques et al., Interspeech 2020), wired as in SpeechBrain."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chns_jax.encoders.batch_norm import BatchNorm
from chns_jax.encoders.layers import (
    TDNN,
    AttentiveStatistics,
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
    def __call__(
        self,
        x: Float[Array, "b t c"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b t c"]:
        groups = jnp.split(x, self.scale, axis=-1)
        outputs = [groups[0]]
        for i, group in enumerate(groups[1:]):
            tdnn = TDNN(group.shape[-1], self.kernel_size, self.dilation, name=f"blocks_{i}")
            group = group if i == 0 else group + outputs[-1]
            outputs.append(tdnn(group, train, frames_b, counted_b))
        return jnp.concatenate(outputs, axis=-1)


class SERes2NetBlock(nn.Module):
    """TDNN, Res2Net, TDNN, squeeze-and-excitation, with a residual connection around them."""

    channels: int
    kernel_size: int
    dilation: int
    res2net_scale: int
    se_channels: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b t d"]:
        residual = x
        if x.shape[-1] != self.channels:
            residual = Conv1d(self.channels, name="shortcut")(x)
        x = TDNN(self.channels, name="tdnn1")(x, train, counted_b=counted_b)
        res2net = Res2Net(self.res2net_scale, self.kernel_size, self.dilation, name="res2net")
        x = res2net(x, train, frames_b, counted_b)
        x = TDNN(self.channels, name="tdnn2")(x, train, counted_b=counted_b)
        return SqueezeExcitation(self.se_channels, name="se")(x, frames_b) + residual


class EcapaTdnn(nn.Module):
    """Log-mel -> speaker embedding. Defaults: the paper's mobile model, 2,049,952 parameters.

    `channels`, `kernel_sizes` and `dilations` have one entry for the first TDNN, one for each
    SE-Res2Net block and one for the aggregation of the blocks' outputs. Convolutions compute in
    `dtype`. With `remat`, a block's activations are made again for its gradient, not kept. In
    evaluation mode, rows may be padded: `frames_b` are then the frames of each utterance, no fewer
    than `fewest_frames`, and an embedding is that of the utterance alone. `counted_b` is as of
    BatchNorm.
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

    @property
    def fewest_frames(self) -> int:
        """Frames that an utterance needs for its convolutions to reflect."""
        reaches = [(k - 1) * d for k, d in zip(self.kernel_sizes, self.dilations, strict=True)]
        return (max(reaches) + 1) // 2 + 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t f"],
        train: bool,
        frames_b: Int[Array, " b"] | None = None,
        counted_b: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        first, *blocks, last = zip(self.channels, self.kernel_sizes, self.dilations, strict=True)
        x = TDNN(*first, name="blocks_0")(x.astype(self.dtype), train, frames_b, counted_b)
        outputs = []
        make_block = rematerialised(SERes2NetBlock) if self.remat else SERes2NetBlock
        for i, layer in enumerate(blocks, start=1):
            block = make_block(*layer, self.res2net_scale, self.se_channels, name=f"blocks_{i}")
            x = block(x, train, frames_b, counted_b)
            outputs.append(x)
        joined = jnp.concatenate(outputs, axis=-1)
        x = TDNN(*last, name="mfa")(joined, train, frames_b, counted_b)
        pooling = AttentiveStatistics(self.attention_channels, name="asp")
        x = pooling(x, train, frames_b, counted_b)
        x = BatchNorm(name="asp_bn")(x, train, counted_b)
        return Conv1d(self.embedding, name="fc")(x[:, None])[:, 0]
