"""Encoders: log-mel (b, t, f) -> speaker embedding (b, d)."""

from __future__ import annotations

import flax.linen as nn

from chns_jax.config import Encoder


def make_encoder(encoder: Encoder) -> nn.Module:
    """The Flax module that the config describes."""
    from chns_jax.encoders.ecapa_tdnn import EcapaTdnn

    ecapa = encoder.ecapa
    return EcapaTdnn(
        channels=tuple(ecapa.channels),
        kernel_sizes=tuple(ecapa.kernel_sizes),
        dilations=tuple(ecapa.dilations),
        res2net_scale=ecapa.res2net_scale,
        se_channels=ecapa.se_channels,
        attention_channels=ecapa.attention_channels,
        embedding=encoder.embedding,
    )
