"""What training changes, what is read of it, and digests."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
from flax import struct, traverse_util
from jaxtyping import Array, Int


@struct.dataclass
class TrainState:
    """All that changes from step to step."""

    # Updates made; maps over the tree put shapes, shardings and NumPy arrays in its place.
    step: Int[Array, ""] | Any
    variables: dict[str, Any]  # {"params": {"encoder", "loss"}, "batch_stats"}
    optimizer: Any  # optax.OptState; optax takes half a second to import
    average: dict[str, Any] | None = None  # of the variables; None where the config asks for none

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables with which all but training embeds."""
        return self.variables if self.average is None else self.average


class Saved(NamedTuple):
    """What is read of a checkpoint, or of a published model, to use its encoder."""

    step: int
    variables: dict[str, Any]
    speakers: str | None  # digest of the names of those trained on; None where nobody knows
    config: str  # as it was when this was saved, in YAML


def without_loss(variables: dict[str, Any]) -> dict[str, Any]:
    """The variables of a model at work, {"params": {"encoder"}, "batch_stats"}."""
    return {
        "params": {"encoder": variables["params"]["encoder"]},
        "batch_stats": variables["batch_stats"],
    }


def of_encoder(variables: dict[str, Any]) -> dict[str, Any]:
    """What the encoder's module is applied to, {"params", "batch_stats"}."""
    return {
        "params": variables["params"]["encoder"],
        "batch_stats": variables["batch_stats"],
    }


def digest(tree: Any) -> str:
    """sha256 of the names, types, shapes and bytes of a tree's arrays, whatever it is made of."""
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    found = hashlib.sha256()
    for name, value in sorted(jax.device_get(arrays).items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(value.tobytes())
    return found.hexdigest()


def sha256(variables: dict[str, Any]) -> str:
    """Digest of the bytes of all parameters and batch statistics, in sorted order of their keys."""
    digest = hashlib.sha256()
    for _, value in sorted(traverse_util.flatten_dict(variables, sep="/").items()):
        digest.update(jax.device_get(value).tobytes())
    return digest.hexdigest()
