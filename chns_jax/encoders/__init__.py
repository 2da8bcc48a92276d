"""Encoders: log-mel (b, t, f) -> speaker embedding (b, d)."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from chns_jax.config import OPTIONS, Encoder

ENOUGH_FRAMES = 60_000  # for every dilation; only shapes are computed with them


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


def variable_shapes(encoder: Encoder, bands: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of each variable of an encoder of `bands` mel bins, by its path: ("params", ...) or
    ("batch_stats", ...)."""
    return dict(_variable_shapes(make_encoder(encoder), bands))


@lru_cache(8)
def _variable_shapes(module: nn.Module, bands: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    frames = jax.ShapeDtypeStruct((1, ENOUGH_FRAMES, bands), jnp.float32)
    made = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), frames)
    # Of arrays, which flatten_dict may hand on as trees.
    flat = cast(dict[tuple[str, ...], Any], flatten_dict(made))
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
