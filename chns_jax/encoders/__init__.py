"""Encoders: log-mel (b, t, f) -> speaker embedding (b, d)."""

from __future__ import annotations

import flax.linen as nn

from chns_jax.config import OPTIONS, Encoder


def make_encoder(encoder: Encoder, *, dtype: str = "float32", remat: bool = False) -> nn.Module:
    """The Flax module that the config describes; `dtype` and `remat` as of `config.Training`."""
    from chns_jax.encoders.ecapa_tdnn import EcapaTdnn
    from chns_jax.encoders.redimnet2 import ReDimNet2
    from chns_jax.encoders.thin_resnet import ThinResNet

    kinds = {"ecapa_tdnn": EcapaTdnn, "thin_resnet": ThinResNet, "redimnet2": ReDimNet2}
    module, options = kinds[encoder.kind], getattr(encoder, OPTIONS[encoder.kind])
    # Modules must be hashable, and a config may hold lists.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(options).items()}
    return module(**fields, embedding=encoder.embedding, dtype=dtype, remat=remat)
