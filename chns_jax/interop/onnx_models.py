"""A trained run as ONNX models: of log-mel, and of waveforms."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import onnx
from jax.export import symbolic_shape
from jaxtyping import Array, Float

from chns_jax.config import Features
from chns_jax.embedding.embedder import Embedder
from chns_jax.embedding.model import Model, checkpoint_digest
from chns_jax.encoders import make_encoder
from chns_jax.encoders.features import log_mel
from chns_jax.interop import onnx_digest
from chns_jax.interop.onnx_graph import to_onnx
from chns_jax.runs.state import of_encoder
from chns_jax.scoring.calibration import Calibration

LEAST_NORM = 1e-12  # of an embedding, as of `common.vectors.unit`


class Models(NamedTuple):
    """Of a run: both make "embedding" (b, d), L2-normalised.

    `encoder` is given "features" (b, t, f) float32, log-mel as of `features.kind`, and `speaker`
    "waveform" (b, s) float32 in [-1, 1]. They embed what they are given whole, as `embed` does with
    an utterance of up to a minute.
    """

    encoder: onnx.ModelProto
    speaker: onnx.ModelProto


def make(model: Model, calibration: Calibration | None) -> Models:
    """The models, with metadata: `sample_rate` in Hz, `output_dim`, `digest`, that of the
    checkpoint, and `sha256`, that of all else in the model.

    `speaker` also has `shortest_seconds`, and `calibration` as JSON, where there is one; `encoder`
    has what sherpa-onnx asks for, where it computes the same features.
    """
    features = model.config.features
    about = {
        "sample_rate": str(features.sample_rate),
        "output_dim": str(model.config.encoder.embedding),
        "digest": checkpoint_digest(model),
    }
    encoder = _encoder(model)
    speaker = _joined(_log_mel(features, model.embedder), encoder)
    for_sherpa = {
        "framework": "wespeaker",  # one of those that sherpa-onnx knows
        "language": "unknown",
        "normalize_samples": "1",
        "feature_normalize_type": "global-mean" if features.mean_normalise else "",
    }
    onnx_digest.describe(encoder, about | (for_sherpa if is_sherpas(features) else {}))
    seconds = model.embedder.shortest / features.sample_rate
    of_speaker = {"shortest_seconds": f"{seconds:g}"}
    if calibration is not None:
        of_speaker["calibration"] = json.dumps(dataclasses.asdict(calibration))
    onnx_digest.describe(speaker, about | of_speaker)
    return Models(encoder, speaker)


def quantised(models: Models, model: Model) -> Models:
    """The same, with weights of the encoder's matrix products in int8, whose other operands are
    quantised as they come; log-mel is what it was.

    Source: `onnxruntime.quantization.quantize_dynamic`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path, root = Path(folder) / "int8.onnx", logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it advises to prepare models that need no preparation
        try:
            quantize_dynamic(
                models.encoder,
                path,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        encoder = onnx.load(path)
    speaker = _joined(_log_mel(model.config.features, model.embedder), encoder)
    for made, of in ((encoder, models.encoder), (speaker, models.speaker)):
        onnx_digest.describe(made, {entry.key: entry.value for entry in of.metadata_props})
    return Models(encoder, speaker)


def is_sherpas(features: Features) -> bool:
    """Whether sherpa-onnx computes these features; it asks a model for its sample rate alone."""
    own = Features(
        kind="sherpa",
        sample_rate=features.sample_rate,
        f_min=20,
        f_max=features.sample_rate / 2 - 400,
        mean_normalise=features.mean_normalise,
    )
    return features == own


def _log_mel(features: Features, embedder: Embedder) -> onnx.ModelProto:
    def of(waveform: Float[Array, "b s"]) -> Float[Array, "b t f"]:
        with jax.default_matmul_precision("float32"):
            return log_mel(waveform, features)

    b, s = symbolic_shape("b, s", constraints=["b >= 1", f"s >= {embedder.shortest}"])
    return to_onnx(of, {"waveform": jax.ShapeDtypeStruct((b, s), jnp.float32)}, "features")


def _encoder(model: Model) -> onnx.ModelProto:
    module = make_encoder(model.config.encoder)
    variables = of_encoder(model.variables)

    def of(features: Float[Array, "b t f"]) -> Float[Array, "b d"]:
        with jax.default_matmul_precision("float32"):
            # It is a pair only where variables may change.
            embedding = cast(Array, module.apply(variables, features, train=False))
        norm = jnp.sqrt(jnp.square(embedding).sum(axis=-1, keepdims=True))
        return embedding / jnp.maximum(norm, LEAST_NORM)

    fewest = max(2, cast(int, module.fewest_frames))  # type: ignore[attr-defined]
    b, t = symbolic_shape("b, t", constraints=["b >= 1", f"t >= {fewest}"])
    shape = (b, t, model.config.features.bands)
    return to_onnx(of, {"features": jax.ShapeDtypeStruct(shape, jnp.float32)}, "embedding")


def _joined(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """One model after another, by their "features"; names of the first begin with log_mel."""
    first = onnx.compose.add_prefix(first, "log_mel/", rename_inputs=False, rename_outputs=False)
    return onnx.compose.merge_models(
        first, second, [("features", "features")], producer_name="chns_jax"
    )
