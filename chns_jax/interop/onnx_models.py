"""A trained run as ONNX models: of log-mel, and of waveforms."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import onnx
from jax.export import symbolic_shape
from jaxtyping import Array, Float

from chns_jax.config import Features
from chns_jax.embedding.embedder import embed_step
from chns_jax.embedding.model import Model, checkpoint_digest
from chns_jax.encoders import make_encoder
from chns_jax.interop.onnx_graph import to_onnx
from chns_jax.scoring.calibration import Calibration

LEAST_NORM = 1e-12


def speaker(model: Model, calibration: Calibration | None) -> onnx.ModelProto:
    """ "waveform" (b, s) float32 in [-1, 1] -> "embedding" (b, d), L2-normalised.

    A waveform is embedded whole, as `embed` does up to a minute; s is `shortest_seconds` at least.
    Metadata: `sample_rate`, `output_dim`, `shortest_seconds`, `digest` of the checkpoint, and
    `calibration`, as JSON, of a run that is calibrated.
    """
    config, embedder = model.config, model.embedder
    rate = config.features.sample_rate

    def embed(waveform: Float[Array, "b s"]) -> Float[Array, "b d"]:
        made = embed_step(model.variables, waveform, config=config, encoder=_encoder(model))
        norm = jnp.sqrt(jnp.square(made).sum(axis=-1, keepdims=True))
        return made / jnp.maximum(norm, LEAST_NORM)

    b, s = symbolic_shape("b, s", constraints=[f"s >= {embedder.shortest}", "b >= 1"])
    metadata = {
        "sample_rate": str(rate),
        "output_dim": str(config.encoder.embedding),
        "shortest_seconds": f"{embedder.shortest / rate:g}",
        "digest": checkpoint_digest(model),
    }
    if calibration is not None:
        metadata["calibration"] = json.dumps(dataclasses.asdict(calibration))
    waveform = jax.ShapeDtypeStruct((b, s), jnp.float32)
    return to_onnx(embed, {"waveform": waveform}, "embedding", metadata=metadata)


def encoder(model: Model) -> onnx.ModelProto:
    """ "features" (b, t, f) float32, log-mel -> "embedding" (b, d), not normalised.

    Metadata: `sample_rate`, `output_dim` and `digest`; and all that sherpa-onnx asks for, of a run
    whose features are those that it computes.
    """
    config, module = model.config, _encoder(model)

    def embed(features: Float[Array, "b t f"]) -> Float[Array, "b d"]:
        variables = {
            "params": model.variables["params"]["encoder"],
            "batch_stats": model.variables["batch_stats"],
        }
        with jax.default_matmul_precision("float32"):
            return module.apply(variables, features, train=False)

    fewest = max(2, _encoder(model).fewest_frames)
    b, t = symbolic_shape("b, t", constraints=[f"t >= {fewest}", "b >= 1"])
    metadata = {
        "sample_rate": str(config.features.sample_rate),
        "output_dim": str(config.encoder.embedding),
        "digest": checkpoint_digest(model),
    }
    if is_sherpas(config.features):
        metadata |= {
            "framework": "wespeaker",
            "language": "unknown",
            "normalize_samples": "1",
            "feature_normalize_type": "global-mean" if config.features.mean_normalise else "",
            "comment": f"chns_jax {config.encoder.kind}",
        }
    features = jax.ShapeDtypeStruct((b, t, config.features.bands), jnp.float32)
    return to_onnx(embed, {"features": features}, "embedding", metadata=metadata)


def is_sherpas(features: Features) -> bool:
    """Whether sherpa-onnx computes these features itself, with no option to differ."""
    return dataclasses.replace(features, mean_normalise=True) == Features(
        kind="sherpa", f_min=20, f_max=features.sample_rate / 2 - 400
    )


def _encoder(model: Model) -> Any:
    return make_encoder(model.config.encoder)


def quantised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the weights of its matrix products in int8, whose other operands are
    quantised as they come. Source: `onnxruntime.quantization.quantize_dynamic`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(proto, path, weight_type=QuantType.QInt8, per_channel=True)
        return onnx.load(path)
