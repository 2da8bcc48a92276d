"""Whether an ONNX model is what was exported: the digest of all else in it, in its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from onnx import ModelProto, helper

KEY = "sha256"


def describe(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Give a model its metadata, and the digest of what it is then."""
    helper.set_model_props(model, dict(metadata))
    helper.set_model_props(model, {**metadata, KEY: _digest(model)})


def is_as_described(model: ModelProto) -> bool:
    """Whether the model is the one that `describe` met; False where it has no digest."""
    return _digest(model) in [entry.value for entry in model.metadata_props if entry.key == KEY]


def _digest(model: ModelProto) -> str:
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    bare.metadata_props.extend(entry for entry in model.metadata_props if entry.key != KEY)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
